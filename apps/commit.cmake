# cmake -DSOURCE=… -DHEADER=… -P commit.cmake: writes HEADER, which defines SINTER_COMMIT.
cmake_minimum_required(VERSION 3.22)

set(commit "")
# Only this tree's own repository: unpacked inside another one, git would answer for that.
if(EXISTS ${SOURCE}/.git)
  execute_process(COMMAND git -C ${SOURCE} describe --always --tags --dirty
    OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE status)
endif()
if(NOT commit)
  set(commit unknown)
endif()
file(CONFIGURE OUTPUT ${HEADER} CONTENT "#define SINTER_COMMIT \"${commit}\"\n")
