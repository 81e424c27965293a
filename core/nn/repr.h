// How modules print what they were made with: as Python does.
#pragma once

#include <charconv>
#include <string>

#include "sinter/check.h"
#include "sinter/pair.h"

namespace sinter {

inline const char* repr(bool x) { return x ? "True" : "False"; }
inline std::string repr(Pair p) { return detail::str('(', p.h, ", ", p.w, ')'); }
inline std::string repr(double x) {
  char digits[32];
  std::string text(digits, std::to_chars(digits, digits + sizeof digits, x).ptr);
  return text.find_first_of(".en") == std::string::npos ? text + ".0" : text;
}

}  // namespace sinter
