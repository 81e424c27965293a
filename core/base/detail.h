// The library's own sources write its helpers (sinter::detail) by their plain names.
#pragma once

namespace sinter {
namespace detail {}
using namespace detail;
}  // namespace sinter
