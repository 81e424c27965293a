// The subcommands. Each prints its results on stdout and throws what goes wrong.
#pragma once

#include "apps/options.h"

namespace sinter::app {

void train_command(const Options& options);
void bench_command(const Options& options);
void eval_command(const Options& options);
// Whether the default `sinter train` would work here.
bool doctor_command(const Options& options);
// Whether every derivative asked for is right.
bool gradcheck_command(const Options& options);
// Whether every operator is right beside every reference.
bool verify_command(const Options& options);

}  // namespace sinter::app
