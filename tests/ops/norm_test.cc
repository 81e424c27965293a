#include "tests/support/values.h"
