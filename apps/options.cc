#include "apps/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>

#include "apps/machine.h"
#include "core/base/detail.h"
#include "sinter/models.h"
#include "sinter/runtime.h"

namespace sinter::app {

namespace {

// CLI11 puts the option's name before what these return, and stops at the first that is not empty.

template <class T> bool parse_number(const std::string& text, T& value) {
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  return error == std::errc() && stop == end;
}

// For transform: it leaves plain digits, since CLI11 takes a leading 0 for octal.
CLI::Validator integer_in(int64_t low, int64_t high) {
  return CLI::Validator(
      [=](std::string& text) -> std::string {
        int64_t value = 0;
        if (!parse_number(text, value) || !(low <= value && value <= high))
          return str("expected a whole number from ", low, " to ", high, ", got '", text, "'");
        text = std::to_string(value);
        return "";
      },
      "");
}

CLI::Validator number_in(double low, double high) {
  return CLI::Validator(
      [=](const std::string& text) -> std::string {
        double value = 0;
        if (parse_number(text, value) && low <= value && value <= high) return "";
        return str("expected a number from ", low, " to ", high, ", got '", text, "'");
      },
      "");
}

CLI::Validator one_of(const std::vector<std::string>& choices) {
  std::string listed;
  for (const std::string& choice : choices) listed += (listed.empty() ? "" : ", ") + choice;
  return CLI::Validator(
      [=](const std::string& text) -> std::string {
        if (std::find(choices.begin(), choices.end(), text) != choices.end()) return "";
        return str("expected one of ", listed, ", got '", text, "'");
      },
      "");
}

std::string check_device(const std::string& text) {
  try {
    Device::parse(text);
    return "";
  } catch (const Error&) {
    return str("expected cpu, cuda or cuda:N, got '", text, "'");
  }
}

// What a variable of the shell that is not set leaves of "--save $FILE" or "--save=$FILE", and an
// option that stands where a value is missing: for options of every command.
std::string check_value(const std::string& text) {
  if (text.empty()) return "expected a value, got an empty one";
  if (text.rfind("--", 0) == 0) return str("expected a value, got the option ", text);
  return "";
}

// For flags, which may be given as "--quiet=false". CLI11's own check throws or sets errno, as its
// version goes.
std::string check_flag(const std::string& text) {
  for (const char* known : {"true", "false", "on", "off", "yes", "no", "1", "0"})
    if (CLI::detail::to_lower(text) == known) return "";
  return str("expected no value, or true or false, got '", text, "'");
}

void check_values(CLI::App& app) {
  for (CLI::App* command : app.get_subcommands({})) {
    for (CLI::Option* option : command->get_options())
      option->check(option->get_items_expected_max() > 0 ? check_value : check_flag);
  }
}

void refuse_repetitions(const CLI::App& command) {
  for (const CLI::Option* option : command.get_options()) {
    if (option->get_items_expected_max() == 1 && option->count() > 1)
      throw UsageError(
          str(option->get_name(), ": given ", option->count(), " times, expected once"));
  }
}

// CLI11 takes the word after "--save=" for its value.
void refuse_empty_assignments(int argc, const char* const* argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg.rfind("--", 0) == 0 && arg.find('=') == arg.size() - 1)
      throw UsageError(arg.substr(0, arg.size() - 1) + ": " + check_value(""));
  }
}

void add_threads_option(CLI::App& app, Options& o) {
  app.add_option("--threads", o.threads, "CPU threads (default: the cores it may use)")
      ->transform(integer_in(1, kMaxThreads))
      ->type_name("N");
}

void add_common_options(CLI::App& app, Options& o) {
  add_threads_option(app, o);
  app.add_option("--data-dir", o.data_dir,
                 "folder of CIFAR-10 (the default one: filled if it has none)")
      ->capture_default_str()
      ->type_name("DIR");
}

void add_data_options(CLI::App& app, Options& o) {
  app.add_option("--model", o.job.model, "network")
      ->check(one_of(model_names()))
      ->capture_default_str()
      ->type_name("NAME");
  app.add_option("--dataset", o.dataset, "cifar10, or synthetic (drawn, no download)")
      ->check(one_of({"cifar10", "synthetic"}))
      ->capture_default_str()
      ->type_name("NAME");
  app.add_flag("--download", o.download,
               "fetch CIFAR-10 (170 MB) to --data-dir if it is not there, or fail");
  app.add_option("--synthetic-size", o.synthetic_size,
                 "training images of the synthetic set; a fifth as many test images")
      ->transform(integer_in(5, 10'000'000))
      ->capture_default_str()
      ->type_name("N");
  app.add_flag("--quiet", o.quiet, "no progress, only results and errors");
}

void add_conv_options(CLI::App& app, Options& o) {
  app.add_option("--conv-algo", o.job.conv_algo,
                 "how convolutions are computed: auto, naive, direct, im2col, implicit-gemm, "
                 "winograd or, on a GPU, tensor-core")
      ->check(
          one_of({"auto", "naive", "direct", "im2col", "implicit-gemm", "tensor-core", "winograd"}))
      ->capture_default_str()
      ->type_name("NAME");
  app.add_flag("--tf32", o.job.tf32,
               "round the operands of a GPU's convolutions and matrix products to TF32");
}

void add_device_option(CLI::App& app, Options& o) {
  app.add_option("--device", o.device,
                 "cpu, cuda or cuda:N (default: cuda where it runs, else cpu)")
      ->check(check_device)
      ->type_name("NAME");
}

void add_devices_option(CLI::App& app, const char* name, Options& o) {
  // Not CLI11's delimiter, which passes over empty names.
  const auto split = [&o, name](const std::vector<std::string>& lists) {
    for (const std::string& list : lists) {
      for (size_t first = 0, end = 0; end != std::string::npos; first = end + 1) {
        end = list.find(',', first);
        o.devices.push_back(list.substr(first, end - first));
        const std::string fault = check_device(o.devices.back());
        if (!fault.empty()) throw CLI::ValidationError(name, fault);
      }
    }
  };
  app.add_option_function<std::vector<std::string>>(
         name, split, "such as cpu,cuda (default: every usable device)")
      ->type_name("NAME,...");
}

void add_job_options(CLI::App& app, Options& o) {
  app.add_option("--epochs", o.job.epochs, "passes over the training images")
      ->transform(integer_in(1, 1'000'000))
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--batch-size", o.job.batch_size, "images an update")
      ->transform(integer_in(1, 1'000'000))
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--lr", o.job.lr, "learning rate")
      ->check(number_in(0, 1e6))
      ->capture_default_str()
      ->type_name("X");
  app.add_option("--optimizer", o.job.optimizer, "adam, adamw or sgd")
      ->check(one_of({"adam", "adamw", "sgd"}))
      ->capture_default_str()
      ->type_name("NAME");
  app.add_option("--momentum", o.job.momentum, "of sgd")
      ->check(number_in(0, 1))
      ->capture_default_str()
      ->type_name("X");
  app.add_option("--weight-decay", o.job.weight_decay, "(default: 0, adamw 0.01)")
      ->check(number_in(0, 1e6))
      ->type_name("X");
  app.add_option("--seed", o.job.seed, "of initial weights and shuffling")
      ->transform(integer_in(0, std::numeric_limits<int64_t>::max()))
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--max-steps", o.job.max_steps, "stop after N updates")
      ->transform(integer_in(1, std::numeric_limits<int64_t>::max()))
      ->type_name("N");
  app.add_flag("--eager", o.job.eager,
               "run operators one by one, as they are called: what compiling the step gains");
  // By a function: CLI11 would print "--no-shuffle{false}".
  app.add_flag_function(
      "--no-shuffle", [&](int64_t count) { o.job.shuffle = count <= 0; },
      "take the images in their stored order");
  app.add_option("--metrics", o.metrics, "write every loss and accuracy, one JSON object a line")
      ->type_name("FILE.jsonl");
}

}  // namespace

Options parse_options(int argc, const char* const* argv) {
  Options o;
  CLI::App app("Sinter trains small image networks on CPU and CUDA.", "sinter");
  app.require_subcommand(1);
  app.set_version_flag("--version", version_text());

  CLI::App* train = app.add_subcommand("train", "train a network and report its test accuracy");
  add_device_option(*train, o);
  add_job_options(*train, o);
  add_conv_options(*train, o);
  add_data_options(*train, o);
  add_common_options(*train, o);
  train->add_option("--save", o.save, "write the trained weights")->type_name("W.safetensors");
  train->add_option("--init", o.init, "start from these weights")->type_name("W.safetensors");
  train->add_flag("--print-program", o.job.print_program,
                  "print the compiled step that ran last, as recorded and after each pass");
  train->add_flag("--detect-anomaly", o.job.detect_anomaly,
                  "stop at the first operator that makes a NaN or an infinity, and name it (slow)");

  CLI::Option* checkpoint =
      train->add_option("--checkpoint", o.checkpoint, "keep a checkpoint, saved after each epoch")
          ->type_name("DIR");
  train->add_option("--every", o.every, "save the checkpoint also after every N updates")
      ->transform(integer_in(1, std::numeric_limits<int64_t>::max()))
      ->needs(checkpoint)
      ->type_name("N");
  train->add_flag("--resume", o.resume, "go on from the checkpoint, if there is one")
      ->needs(checkpoint);

  CLI::App* bench = app.add_subcommand(
      "bench", "check that the devices agree, train on each, and tabulate time and accuracy");
  add_devices_option(*bench, "--devices", o);
  bench->add_option("--runs", o.runs, "runs on each device, with seeds counting up from --seed")
      ->transform(integer_in(1, 1000))
      ->capture_default_str()
      ->type_name("R");
  bench->add_flag(
      "--profile", o.profile,
      "say where the time of a training step goes, operator by operator; on the first GPU "
      "among the devices, and kernel by kernel too, or else on the CPU");
  bench->add_option("--json", o.json, "results")->capture_default_str()->type_name("FILE");
  bench->add_option("--markdown", o.markdown, "results, as a page")
      ->capture_default_str()
      ->type_name("FILE");
  add_job_options(*bench, o);
  add_conv_options(*bench, o);
  add_data_options(*bench, o);
  add_common_options(*bench, o);

  CLI::App* eval = app.add_subcommand("eval", "test accuracy and loss of saved weights");
  eval->add_option("--weights", o.weights, "the weights")->required()->type_name("W.safetensors");
  eval->add_option("--logits", o.logits, "write the model's outputs, (N, classes), as 'logits'")
      ->type_name("OUT.safetensors");
  add_device_option(*eval, o);
  add_conv_options(*eval, o);
  add_data_options(*eval, o);
  add_common_options(*eval, o);

  CLI::App* doctor =
      app.add_subcommand("doctor", "say what works on this machine and how to mend the rest");
  add_common_options(*doctor, o);

  CLI::App* gradcheck = app.add_subcommand(
      "gradcheck", "check every derivative against central differences, in float64");
  CLI::Option* op =
      gradcheck->add_option("--op", o.op, "only this operator, module or loss")->type_name("NAME");
  bool all = false;  // the default: it need not be looked at
  gradcheck->add_flag("--all", all, "every one of them (default)")->excludes(op);
  gradcheck->add_flag("--full", o.full, "every element by itself, not random directions");
  add_devices_option(*gradcheck, "--device", o);
  add_threads_option(*gradcheck, o);

  CLI::App* verify = app.add_subcommand(
      "verify",
      "compare every operator with the naive oracle, recorded PyTorch and central differences");
  CLI::Option* only = verify->add_option("--op", o.op, "only this operator, module or optimizer")
                          ->type_name("NAME");
  verify->add_option("--out", o.out, "write the table, as a page")
      ->excludes(only)  // a proof is of everything
      ->type_name("FILE");
  verify->add_option("--golden", o.golden, "folder of what PyTorch recorded")
      ->capture_default_str()
      ->type_name("DIR");
  verify->add_flag("--quiet", o.quiet, "no progress, only results and errors");
  add_devices_option(*verify, "--device", o);
  add_threads_option(*verify, o);

  check_values(app);
  refuse_empty_assignments(argc, argv);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& e) {  // --help, --version
    std::ostringstream out;
    app.exit(e, out, out);
    o.command = "print";
    o.text = out.str();
    return o;
  } catch (const CLI::ExtrasError&) {
    std::string unknown;
    for (const std::string& arg : app.remaining(true)) unknown += " " + arg;
    throw UsageError(str("not understood:", unknown, "; 'sinter ",
                         app.get_subcommands().front()->get_name(), " --help' lists what is"));
  } catch (const CLI::RequiredError& e) {
    if (!app.get_subcommands().empty()) throw UsageError(e.what());
    const std::vector<std::string> rest = app.remaining();
    throw UsageError(str("expected a command: train, bench, eval, doctor, gradcheck or verify",
                         rest.empty() ? "" : ", got '" + rest.front() + "'",
                         "; 'sinter --help' says more"));
  } catch (const CLI::ArgumentMismatch& e) {
    for (const CLI::App* command : app.get_subcommands()) refuse_repetitions(*command);
    throw UsageError(e.what());
  } catch (const CLI::ParseError& e) {
    throw UsageError(e.what());
  }

  const CLI::App& command = *app.get_subcommands().front();
  o.command = command.get_name();
  const CLI::Option* data_dir = command.get_option_no_throw("--data-dir");
  o.data_dir_named = data_dir != nullptr && data_dir->count() > 0;
  // Not -0, which would pass for another number in records.
  o.job.lr += 0.;
  o.job.momentum += 0.;
  if (o.job.weight_decay) *o.job.weight_decay += 0.;
  if (o.job.optimizer != "sgd" && o.job.momentum != 0) {
    throw UsageError(str("--momentum: expected --optimizer sgd beside it, got ", o.job.optimizer));
  }
  if (o.download && o.dataset == "synthetic")
    throw UsageError("--download: expected --dataset cifar10 beside it, got synthetic");
  return o;
}

}  // namespace sinter::app
