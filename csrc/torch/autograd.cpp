// Derivatives of a layer. The first is layer_backward, whatever asks for it. Backward derivatives of that, and
// all forward-mode derivatives, are those of plain torch operations (differentiable.cpp).

#include <ATen/ATen.h>
#include <c10/util/irange.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>
#include <torch/library.h>

#include <algorithm>

#include "torch/layer.h"

namespace fastrnn::torch_ops {

namespace {

using torch::autograd::Node;

// torch holds nodes by shared_ptr, newer versions by intrusive_ptr.
template <class T, class... Args>
auto make_node(Args&&... args) {
  if constexpr (std::is_same_v<decltype(torch::autograd::Edge::function), std::shared_ptr<Node>>) {
    // deleteNode takes a long chain of nodes apart without recursion. It is found by its argument: newer
    // versions have none.
    return std::shared_ptr<T>(new T(std::forward<Args>(args)...), [](auto* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<T>(std::forward<Args>(args)...);
  }
}

variable_list list_inputs(const LayerArgs& args) {
  variable_list inputs;
  inputs.reserve(1 + args.hx.size() + args.weights.size());
  inputs.push_back(args.x);
  inputs.insert(inputs.end(), args.hx.begin(), args.hx.end());
  inputs.insert(inputs.end(), args.weights.begin(), args.weights.end());
  return inputs;
}

bool are_plain(const variable_list& tensors) {
  return std::all_of(tensors.begin(), tensors.end(),
                     [](const Tensor& t) { return !t.defined() || is_plain(t); });
}

// One for each input of a layer, undefined for most.
using StandIns = c10::SmallVector<Tensor, 8>;

// What the nodes of both derivatives keep of a call. Nodes of their own: torch::autograd::Function keeps what is
// no tensor in a map from names to IValues and copies lists several times, which costs more than a small step.
class LayerNode : public Node {
 public:
  // inputs: x, hx, weights; edges: to what the node gives gradients of; stand_ins: for an input that may be
  // changed, or be an inference tensor, until somebody asks for a graph of the derivative, what is taken in its
  // place until then.
  LayerNode(torch::autograd::edge_list edges, const LayerArgs& args, const variable_list& inputs,
            StandIns stand_ins = {})
      : Node(std::move(edges)),
        count_(inputs.size()),
        states_(args.hx.size()),
        cell_(args.cell),
        bidirectional_(args.bidirectional),
        batch_first_(args.batch_first),
        packed_(args.packed()),
        zoneout_(args.noise.zoneout),
        stand_ins_(std::move(stand_ins)) {
    saved_.reserve(count_ + 8);
    stand_ins_.resize(count_);
    for (const auto i : c10::irange(count_)) {
      save(stand_ins_[i].defined() && inputs[i].is_inference() ? Tensor() : inputs[i]);
    }
    // A clone of an inference tensor is none.
    save(packed_ && args.batch_sizes->is_inference() ? args.batch_sizes->clone()
                                                     : args.batch_sizes.value_or(Tensor()));
    save(args.noise.mask.value_or(Tensor()));
    save(args.noise.seed.value_or(Tensor()));
    save(args.resets.value_or(Tensor()));
  }

  // After the arguments.
  void save(const Tensor& tensor, bool is_output = false) { saved_.emplace_back(tensor, is_output); }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& tensor : saved_) tensor.reset_data();
    for (Tensor& tensor : stand_ins_) tensor.reset();
  }

 protected:
  // All that was saved, and the arguments of the layer in it.
  struct Unpacked {
    variable_list all;
    at::TensorList inputs, rest;
    optional<Tensor> batch_sizes;
    LayerNoise noise;
    optional<Tensor> resets;
  };
  LayerArgs args_of(const Unpacked& u) const {
    return {u.inputs[0],
            u.batch_sizes,
            u.inputs.slice(1, states_),
            u.inputs.slice(1 + states_),
            cell_,
            bidirectional_,
            batch_first_,
            u.noise,
            u.resets};
  }
  Unpacked unpack(bool use_stand_ins) {
    Unpacked result;
    result.all.reserve(saved_.size());
    for (const auto i : c10::irange(saved_.size())) {
      const bool is_stand_in = i < count_ && stand_ins_[i].defined();
      if (use_stand_ins && is_stand_in) {
        result.all.push_back(stand_ins_[i]);
        continue;
      }
      result.all.push_back(saved_[i].unpack(getptr()));
      TORCH_CHECK(
          !is_stand_in || result.all.back().defined(),
          "Inference tensors cannot be saved for backward. A graph of the derivative needs all that the "
          "layer was given: clone it outside of inference mode");
    }
    arrange(result);
    return result;
  }
  void arrange(Unpacked& u) const {
    const at::TensorList all(u.all);
    u.inputs = all.slice(0, count_);
    u.rest = all.slice(rest_);
    if (packed_) u.batch_sizes = all[count_];
    const auto given = [](const Tensor& t) { return t.defined() ? optional<Tensor>(t) : std::nullopt; };
    u.noise = {given(all[count_ + 1]), given(all[count_ + 2]), zoneout_};
    u.resets = given(all[count_ + 3]);
  }

  const size_t count_, states_;
  const size_t rest_ = count_ + 4;  // where the rest begins
  const int cell_;
  const bool bidirectional_, batch_first_, packed_;
  const std::vector<double> zoneout_;
  std::vector<torch::autograd::SavedVariable> saved_;  // inputs, batch_sizes, mask, seed, resets, the rest
  StandIns stand_ins_;                                 // one for each input, undefined for most
};

// The derivative of layer_backward. Gradients go to those of the gradients it was given, then to the layer's
// inputs.
class LayerDoubleBackward : public LayerNode {
 public:
  // given: which results of the layer had a gradient; these are what is saved after the arguments.
  LayerDoubleBackward(torch::autograd::edge_list edges, const LayerArgs& args, const variable_list& inputs,
                      std::vector<bool> given, c10::List<bool> wanted)
      : LayerNode(std::move(edges), args, inputs), given_(std::move(given)), wanted_(std::move(wanted)) {}

  std::string name() const override { return "fastrnn::LayerDoubleBackward"; }

  variable_list apply(variable_list&& seeds) override {
    std::lock_guard<std::mutex> lock(mutex_);
    const bool create_graph = at::GradMode::is_enabled();
    at::AutoGradMode record(true);
    Unpacked u = unpack(/*use_stand_ins=*/false);
    const size_t gradients = u.rest.size();
    variable_list needed;
    // Views, so that what is found ends here: an input may be computed from another one. They may not require a
    // gradient: tensors of a transform of torch.func that is over are plain ones again.
    const auto view = [&](size_t saved, size_t edge) {
      if (!task_should_compute_output(edge)) return;
      Tensor& tensor = u.all[saved];
      tensor = tensor.view_as(tensor);
      if (!tensor.requires_grad()) tensor.set_requires_grad(true);
      needed.push_back(tensor);
    };
    for (const auto i : c10::irange(gradients)) view(rest_ + i, i);
    for (const auto i : c10::irange(count_)) view(i, gradients + i);
    c10::List<optional<Tensor>> grads;
    size_t next = 0;
    for (const bool given : given_) grads.push_back(given ? optional<Tensor>(u.rest[next++]) : std::nullopt);
    const variable_list outputs = differentiable_backward(args_of(u), {grads, {}, wanted_});
    variable_list used, used_seeds;
    for (const auto i : c10::irange(outputs.size())) {
      if (!seeds[i].defined() || !outputs[i].requires_grad()) continue;
      used.push_back(outputs[i]);
      used_seeds.push_back(seeds[i]);
    }
    variable_list result(gradients + count_);
    if (used.empty()) return result;
    variable_list found = torch::autograd::grad(used, needed, used_seeds, /*retain_graph=*/create_graph,
                                                create_graph, /*allow_unused=*/true);
    next = 0;
    for (const auto i : c10::irange(result.size())) {
      if (task_should_compute_output(i)) result[i] = std::move(found[next++]);
    }
    return result;
  }

 private:
  const std::vector<bool> given_;
  const c10::List<bool> wanted_;
};

// The backward of one call of fastrnn::layer.
class LayerBackward : public LayerNode {
 public:
  // Saved after the arguments is what layer_backward takes as `saved`, or nothing with checkpoint_gates.
  LayerBackward(const LayerArgs& args, const variable_list& inputs, bool checkpoint_gates)
      : LayerNode(torch::autograd::collect_next_edges(inputs), args, inputs,
                  checkpoint_gates ? StandIns() : make_stand_ins(args, inputs)),
        checkpoint_gates_(checkpoint_gates) {}

  std::string name() const override { return "fastrnn::LayerBackward"; }

  // For compiled autograd: what a compiled graph depends on, and a call that it traces.
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    args.collect(saved_, /*is_output=*/true);
    for (const size_t number : {count_, states_}) args.collect(number);
    for (const bool flag : {bidirectional_, batch_first_, packed_, checkpoint_gates_}) args.collect(flag);
    args.collect(static_cast<size_t>(cell_));
    for (const double p : zoneout_) args.collect(p);
  }
  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& swap) override {
    swap.before(saved_);
    variable_list result = differentiate(grads, /*use_stand_ins=*/false);
    swap.after(saved_);
    return result;
  }

  // create_graph=True, and mapping over gradients (is_grads_batched=True), compute the layer again.
  variable_list apply(variable_list&& grads) override {
    return differentiate(grads, !at::GradMode::is_enabled() && are_plain(grads));
  }

  static size_t count_results(const LayerArgs& args) { return args.info().states.size() + !args.is_step(); }
  // Of what layer_forward returned, what layer_backward takes: of a step that saves nothing its result.
  static at::TensorList saved_of(at::TensorList outputs, const LayerArgs& args) {
    const bool only_y = args.is_step() && args.info().saved == 0;
    return only_y ? outputs.slice(0, 1) : outputs.slice(count_results(args));
  }

 private:
  // torch.nn's layers let be changed what their backward does not need, so that a buffer for the input can be
  // used again while the weights are frozen, or an optimizer can step.
  static StandIns make_stand_ins(const LayerArgs& args, const variable_list& inputs) {
    if (!are_plain(inputs)) return {};
    Which wanted = 0;
    for (const auto i : c10::irange(inputs.size())) wanted |= Which{inputs[i].requires_grad()} << i;
    const Which kept = kept_for_backward(args, wanted);
    StandIns stand_ins(inputs.size());
    for (const auto i : c10::irange(inputs.size())) {
      if (kept >> i & 1) continue;
      const bool is_weight = i > args.hx.size();
      if (is_weight) {
        stand_ins[i] = inputs[i];  // which others hold as well
      } else if (i == 1 && args.info().reads_h) {
        stand_ins[i] = inputs[i].clone();
      } else {  // its form, in the memory of one number
        stand_ins[i] =
            at::empty_strided(inputs[i].sizes(), std::vector<int64_t>(inputs[i].dim()), inputs[i].options());
      }
    }
    return stand_ins;
  }

  variable_list differentiate(const variable_list& grads, bool use_stand_ins) {
    std::lock_guard<std::mutex> lock(mutex_);  // with retain_graph two threads may be here
    const Unpacked u = unpack(use_stand_ins);
    c10::List<bool> wanted;
    wanted.reserve(count_);
    for (const auto i : c10::irange(count_)) wanted.push_back(task_should_compute_output(i));
    c10::List<optional<Tensor>> given;
    given.reserve(grads.size());
    for (const Tensor& grad : grads) given.push_back(grad.defined() ? optional<Tensor>(grad) : std::nullopt);

    const LayerArgs args = args_of(u);
    variable_list again;
    if (checkpoint_gates_) {
      at::AutoDispatchBelowADInplaceOrView below_autograd;
      again = call_layer_forward(args, /*save=*/true);
    }
    const at::TensorList saved = checkpoint_gates_ ? saved_of(again, args) : u.rest;
    // create_graph=True, or a derivative in forward mode of this one, is a matter of autograd. Otherwise its
    // fallback would only box the arguments.
    std::optional<at::AutoDispatchBelowADInplaceOrView> below_autograd;
    if (!at::GradMode::is_enabled() && !torch::autograd::isFwGradDefinedTensorList(grads))
      below_autograd.emplace();
    variable_list found = call_layer_backward(args, {given, saved, wanted});
    variable_list result(count_);
    size_t next = 0;
    for (const auto i : c10::irange(count_)) {
      if (wanted[i]) result[i] = std::move(found[next++]);
    }
    return result;
  }

  const bool checkpoint_gates_;
};

// layer and layer_forward: with `save` the result has what the backward needs too, without derivatives.
variable_list record_forward(const LayerArgs& args, bool checkpoint_gates, bool save) {
  const variable_list inputs = list_inputs(args);
  if (torch::autograd::isFwGradDefinedTensorList(inputs)) {
    check_layer(args);
    return differentiable_forward(args, save);
  }
  const bool needed = torch::autograd::compute_requires_grad(inputs);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  variable_list outputs = call_layer_forward(args, save || (needed && !checkpoint_gates));
  if (!needed) return outputs;

  const auto node = make_node<LayerBackward>(args, inputs, checkpoint_gates);
  const size_t results = LayerBackward::count_results(args);
  for (const auto i : c10::irange(results)) torch::autograd::set_history(outputs[i], node);
  if (!checkpoint_gates) {
    const at::TensorList saved = LayerBackward::saved_of(outputs, args);
    for (const Tensor& tensor : saved) node->save(tensor, /*is_output=*/&tensor == outputs.data());
  }
  if (!save) outputs.resize(results);
  return outputs;
}

variable_list layer(const LayerArgs& args, bool checkpoint_gates) {
  return record_forward(args, checkpoint_gates, false);
}

variable_list layer_forward(const LayerArgs& args, bool save) { return record_forward(args, false, save); }

variable_list layer_backward(const LayerArgs& args, const BackwardArgs& backward) {
  const variable_list inputs = list_inputs(args);
  variable_list given;
  std::vector<bool> is_given;
  for (const optional<Tensor> grad : backward.grads) {
    is_given.push_back(grad.has_value() && grad->defined());
    if (is_given.back()) given.push_back(*grad);
  }
  variable_list sources = given;
  sources.insert(sources.end(), inputs.begin(), inputs.end());
  if (torch::autograd::isFwGradDefinedTensorList(sources)) return differentiable_backward(args, backward);
  const bool needed = torch::autograd::compute_requires_grad(sources);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  variable_list outputs = call_layer_backward(args, backward);
  if (!needed) return outputs;
  const auto node = make_node<LayerDoubleBackward>(torch::autograd::collect_next_edges(sources), args, inputs,
                                                   std::move(is_given), backward.wanted);
  for (const Tensor& grad : given) node->save(grad);
  for (Tensor& output : outputs) torch::autograd::set_history(output, node);
  return outputs;
}

}  // namespace

// torch.autograd.grad(is_grads_batched=True) maps over gradients with a vmap of its own, older than torch.func's.
TORCH_LIBRARY_IMPL(fastrnn, Batched, m) {
  m.impl("layer_backward", as_layer_backward<differentiable_backward>);
}
TORCH_LIBRARY_IMPL(fastrnn, Autograd, m) {
  m.impl("layer", as_layer<layer>);
  m.impl("layer_forward", as_layer<layer_forward>);
  m.impl("layer_backward", as_layer_backward<layer_backward>);
}

}  // namespace fastrnn::torch_ops
