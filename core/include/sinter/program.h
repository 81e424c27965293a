// Compiled functions: what a function does with tensors, recorded as a list of operators and done
// again at every call. The list is rewritten (fused, sorted into lanes, put into one block of
// memory) and, on a GPU, launched by one call.
//
//   auto step = sinter::compile([&](const Tensor& x, const Tensor& y) {
//     const Tensor loss = cross_entropy(net(x), y);
//     loss.backward();
//     adam.step();
//     adam.zero_grad();                  // last: a gradient that is still held would be a result
//     return loss;
//   });
//   for (const auto& [x, y] : batches) step(x, y);
#pragma once

#include <any>
#include <bit>
#include <cstdint>
#include <functional>
#include <iosfwd>
#include <memory>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "sinter/tensor.h"
#include "sinter/work.h"

namespace sinter {

// Of one compiled function, in its present state.
struct ProgramStats {
  int64_t recordings = 0;    // calls in which the function itself ran
  int64_t programs = 0;      // kept, each for other arguments or other answers to what was asked
  int64_t operators = 0;     // of the program that ran last
  int64_t memory_bytes = 0;  // that its intermediate values take
  int64_t lanes = 1;         // in which its operators run side by side
};

struct CompileOptions {
  // Runs the program operator by operator, as it is after all passes, and throws AnomalyError at
  // the first that makes a NaN or an infinity: it names the operator, the module it comes from and
  // the element. For finding an error: it waits for the device at every operator.
  bool check_finite = false;
  // Runs the program operator by operator, as it is after all passes, and times each, for
  // profile(): on a CPU by the clock, on a GPU by the GPU, without the host's part. Calls do what
  // they always do, and the first, in which the function itself runs, is not timed. On a GPU every
  // operator is alone then: what runs side by side, is launched early or waits for a launch does
  // not show.
  bool profile = false;
};

// An operator of a program.
struct OperatorProfile {
  std::string name;         // "conv2d_backward_data"
  std::string module;       // the path of the module it comes from; empty: of none
  std::string backward_of;  // of a backward operator: the one it derives from, "conv2d"
  int lane = 0;             // operators of one lane run one after another
  double us = 0;            // median; 0 if none was timed
  Work work;
};

// Of the program that ran last, after all passes.
struct ProgramProfile {
  Device device;
  int64_t calls = 0;                       // that were timed; of many, the latest count
  int64_t chain = 0;                       // the most operators that have to run one after another
  std::vector<OperatorProfile> operators;  // in the order in which they run
};

// What compile's result is made of.
class CompiledFunction {
 public:
  // A call's arguments that are no tensors, and how to compare them.
  struct Key {
    std::any value;
    bool (*equal)(const std::any&, const std::any&);
  };
  using Body = std::function<std::vector<Tensor>(const std::vector<Tensor>&)>;

  explicit CompiledFunction(const CompileOptions& options);
  ~CompiledFunction();
  CompiledFunction(CompiledFunction&&) noexcept;
  CompiledFunction& operator=(CompiledFunction&&) noexcept;
  std::vector<Tensor> call(const Key& key, const std::vector<Tensor>& arguments, const Body& body);
  ProgramStats stats() const;
  ProgramProfile profile() const;
  void print(std::ostream& out) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// A function compiled by compile(). Calls record, at first, and are replays once two recordings in
// a row were the same:
//
// - What the function reads and does not make is read by reference, as it is at each call: weights,
//   optimizer state, a Batches' position. Tensors given as arguments are copied in (on a CPU they
//   are read where they lie); other arguments choose among the programs that are kept, at most 8.
//   Give tensors new values in place: one that takes another's place is noticed only once nobody
//   holds the old one any more.
// - What is still held when the function returns is a result: returned tensors, gradients of
// leaves,
//   members. A returned one keeps its values; all others are overwritten by the next call. Results
//   are outside the graph.
// - What the function asks for is asked again at each call: training mode, grad mode, conv2d's
//   algorithm, whether a leaf requires grad and has a gradient; with another answer, or arguments
//   of other shapes, it is recorded anew.
// - Host values are part of the program. Where they differ from recording to recording there is
//   none: the fourth throws GraphError and names the operator.
//
// While one is recorded nothing can be read: item(), to_vector(), copies between devices and
// waiting throw GraphError. Whatever is thrown, leaves keep the gradients from before. Under
// anomaly_guard, and within another compiled function, the function is simply called. A program
// belongs to the thread that recorded it: one Compiled is not for several threads at once.
template <class F> class Compiled {
 public:
  Compiled(F function, const CompileOptions& options)
      : function_(std::move(function)), calls_(options) {}

  // Throws GraphError for an argument that requires grad (hold it by reference, or detach it) or
  // that the function changes, and what the function throws.
  template <class... Args> std::invoke_result_t<F&, Args...> operator()(Args&&... args) {
    using Result = std::invoke_result_t<F&, Args...>;
    std::vector<Tensor> tensors;
    (add_tensor(tensors, args), ...);
    using Values = std::tuple<decltype(kept(args))...>;
    const CompiledFunction::Key key{
        Values(kept(args)...), [](const std::any& a, const std::any& b) {
          const auto *x = std::any_cast<Values>(&a), *y = std::any_cast<Values>(&b);
          return x != nullptr && y != nullptr && *x == *y;
        }};
    const auto body = [&](const std::vector<Tensor>& inputs) {
      size_t next = 0;
      const auto argument = [&]<class A>(A& value) -> decltype(auto) {
        if constexpr (is_tensor<A>)
          return inputs[next++];
        else
          return (value);
      };
      // Braces: from left to right.
      const std::tuple<decltype(argument(args))...> all{argument(args)...};
      std::vector<Tensor> results;
      if constexpr (std::is_void_v<Result>)
        std::apply(function_, all);
      else
        add_results(results, std::apply(function_, all));
      return results;
    };
    const std::vector<Tensor> results = calls_.call(key, tensors, body);
    if constexpr (!std::is_void_v<Result>) return make_result<Result>(results);
  }

  ProgramStats stats() const { return calls_.stats(); }
  // The operators of the program that ran last, with the times of calls under
  // CompileOptions::profile. Empty before the first.
  ProgramProfile profile() const { return calls_.profile(); }
  // The program that ran last, as recorded and after each pass: one operator a line, with shapes,
  // bytes, lane and the module it comes from.
  void print(std::ostream& out) const { calls_.print(out); }

 private:
  template <class A> static constexpr bool is_tensor = std::is_same_v<std::decay_t<A>, Tensor>;
  struct Nothing {
    bool operator==(const Nothing&) const = default;
  };
  // Numbers to the bit, so that a NaN is what it was; text by what it says.
  template <class A> static auto kept(const A& value) {
    if constexpr (is_tensor<A>)
      return Nothing();
    else if constexpr (std::is_floating_point_v<A>)
      return std::bit_cast<uint64_t>(static_cast<double>(value));
    else if constexpr (std::is_convertible_v<const A&, std::string_view>)
      return std::string(std::string_view(value));
    else
      return value;
  }

  template <class A> static void add_tensor(std::vector<Tensor>& tensors, const A& value) {
    if constexpr (is_tensor<A>) tensors.push_back(value);
  }

  static void add_results(std::vector<Tensor>& results, const Tensor& y) { results.push_back(y); }
  static void add_results(std::vector<Tensor>& results, const std::vector<Tensor>& ys) {
    results = ys;
  }
  template <class... T>
  static void add_results(std::vector<Tensor>& results, const std::tuple<T...>& ys) {
    std::apply([&](const auto&... y) { (results.push_back(y), ...); }, ys);
  }
  template <class A, class B>
  static void add_results(std::vector<Tensor>& results, const std::pair<A, B>& ys) {
    results = {ys.first, ys.second};
  }
  template <class Result> static Result make_result(const std::vector<Tensor>& results) {
    if constexpr (std::is_same_v<Result, std::vector<Tensor>>)
      return results;
    else if constexpr (std::is_same_v<Result, Tensor>)
      return results[0];
    else
      return [&]<size_t... i>(std::index_sequence<i...>) { return Result{results[i]...}; }
    (std::make_index_sequence<std::tuple_size_v<Result>>());
  }

  F function_;
  CompiledFunction calls_;
};

// `function` compiled. It takes tensors and values that can be compared, and returns nothing, a
// tensor, a vector, pair or tuple of tensors. What it refers to must outlive the result.
template <class F>
Compiled<std::decay_t<F>> compile(F&& function, const CompileOptions& options = {}) {
  return {std::forward<F>(function), options};
}

}  // namespace sinter
