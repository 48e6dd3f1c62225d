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

const c10::TypedOperatorHandle<LayerFunction>& layer_operator() {
  static const auto op = find_operator<LayerFunction>("fastrnn::layer");
  return op;
}
const c10::TypedOperatorHandle<LayerFunction>& forward_operator() {
  static const auto op = find_operator<LayerFunction>("fastrnn::layer_forward");
  return op;
}
const c10::TypedOperatorHandle<LayerBackwardFunction>& backward_operator() {
  static const auto op = find_operator<LayerBackwardFunction>("fastrnn::layer_backward");
  return op;
}

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

variable_list list_inputs(const Tensor& x, at::TensorList hx, at::TensorList weights) {
  variable_list inputs;
  inputs.reserve(1 + hx.size() + weights.size());
  inputs.push_back(x);
  inputs.insert(inputs.end(), hx.begin(), hx.end());
  inputs.insert(inputs.end(), weights.begin(), weights.end());
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
  LayerNode(torch::autograd::edge_list edges, const variable_list& inputs, size_t states,
            const optional<Tensor>& batch_sizes, const std::string& cell, bool bidirectional,
            bool batch_first, StandIns stand_ins = {})
      : Node(std::move(edges)),
        count_(inputs.size()),
        states_(states),
        cell_(cell),
        bidirectional_(bidirectional),
        batch_first_(batch_first),
        packed_(batch_sizes.has_value()),
        stand_ins_(std::move(stand_ins)) {
    saved_.reserve(count_ + 4);
    stand_ins_.resize(count_);
    for (const auto i : c10::irange(count_)) {
      save(stand_ins_[i].defined() && inputs[i].is_inference() ? Tensor() : inputs[i]);
    }
    // A clone of an inference tensor is none.
    save(packed_ && batch_sizes->is_inference() ? batch_sizes->clone() : batch_sizes.value_or(Tensor()));
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
    at::TensorList inputs, hx, weights, rest;
    optional<Tensor> batch_sizes;
    const Tensor& x() const { return inputs[0]; }
  };
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
    u.hx = u.inputs.slice(1, states_);
    u.weights = u.inputs.slice(1 + states_);
    u.rest = all.slice(count_ + 1);
    if (packed_) u.batch_sizes = all[count_];
  }

  const size_t count_, states_;
  const std::string cell_;
  const bool bidirectional_, batch_first_, packed_;
  std::vector<torch::autograd::SavedVariable> saved_;  // inputs, batch_sizes, the rest
  StandIns stand_ins_;                                 // one for each input, undefined for most
};

// The derivative of layer_backward. Gradients go to those of the gradients it was given, then to the layer's
// inputs.
class LayerDoubleBackward : public LayerNode {
 public:
  // given: which results of the layer had a gradient; these are what is saved after the arguments.
  LayerDoubleBackward(torch::autograd::edge_list edges, const variable_list& inputs, size_t states,
                      const optional<Tensor>& batch_sizes, const std::string& cell, bool bidirectional,
                      bool batch_first, std::vector<bool> given, c10::List<bool> wanted)
      : LayerNode(std::move(edges), inputs, states, batch_sizes, cell, bidirectional, batch_first),
        given_(std::move(given)),
        wanted_(std::move(wanted)) {}

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
    for (const auto i : c10::irange(gradients)) view(count_ + 1 + i, i);
    for (const auto i : c10::irange(count_)) view(i, gradients + i);
    variable_list grads(given_.size());
    size_t next = 0;
    for (const auto i : c10::irange(given_.size())) {
      if (given_[i]) grads[i] = u.rest[next++];
    }
    const variable_list outputs = differentiable_backward(grads, u.x(), u.batch_sizes, u.hx, u.weights, cell_,
                                                          bidirectional_, batch_first_, wanted_);
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
  LayerBackward(const variable_list& inputs, size_t states, const optional<Tensor>& batch_sizes,
                const std::string& cell, bool bidirectional, bool batch_first, bool checkpoint_gates)
      : LayerNode(torch::autograd::collect_next_edges(inputs), inputs, states, batch_sizes, cell,
                  bidirectional, batch_first,
                  checkpoint_gates
                      ? StandIns()
                      : make_stand_ins(inputs, states, batch_sizes, cell, bidirectional, batch_first)),
        checkpoint_gates_(checkpoint_gates) {}

  std::string name() const override { return "fastrnn::LayerBackward"; }

  // For compiled autograd: what a compiled graph depends on, and a call that it traces.
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    args.collect(saved_, /*is_output=*/true);
    for (const size_t number : {count_, states_}) args.collect(number);
    for (const bool flag : {bidirectional_, batch_first_, packed_, checkpoint_gates_}) args.collect(flag);
    args.collect(cell_);
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

  static size_t count_results(const Tensor& x, bool packed, const std::string& cell) {
    return (x.dim() == 2 && !packed ? 1 : 2) + (find_cell(cell).has_c ? 1 : 0);
  }
  // Of what layer_forward returned, what layer_backward takes: of a step that saves nothing its result.
  static at::TensorList saved_of(at::TensorList outputs, const Tensor& x, bool packed,
                                 const std::string& cell) {
    const size_t results = count_results(x, packed, cell);
    const bool only_y = x.dim() == 2 && !packed && find_cell(cell).saved == 0;
    return only_y ? outputs.slice(0, 1) : outputs.slice(results);
  }

 private:
  // torch.nn's layers let be changed what their backward does not need, so that a buffer for the input can be
  // used again while the weights are frozen, or an optimizer can step.
  static StandIns make_stand_ins(const variable_list& inputs, size_t states,
                                 const optional<Tensor>& batch_sizes, const std::string& cell,
                                 bool bidirectional, bool batch_first) {
    if (!are_plain(inputs)) return {};
    Which wanted = 0;
    for (const auto i : c10::irange(inputs.size())) wanted |= Which{inputs[i].requires_grad()} << i;
    const at::TensorList all(inputs);
    const Which kept = kept_for_backward(inputs[0], batch_sizes, all.slice(1, states), all.slice(1 + states),
                                         bidirectional, batch_first, wanted);
    StandIns stand_ins(inputs.size());
    for (const auto i : c10::irange(inputs.size())) {
      if (kept >> i & 1) continue;
      const bool is_weight = i > states;
      if (is_weight) {
        stand_ins[i] = inputs[i];  // which others hold as well
      } else if (i == 1 && find_cell(cell).reads_h) {
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

    variable_list again;
    if (checkpoint_gates_) {
      at::AutoDispatchBelowADInplaceOrView below_autograd;
      again = forward_operator().call(u.x(), u.batch_sizes, u.hx, u.weights, cell_, bidirectional_,
                                      batch_first_, /*save=*/true);
    }
    const at::TensorList saved = checkpoint_gates_ ? saved_of(again, u.x(), packed_, cell_) : u.rest;
    // create_graph=True, or a derivative in forward mode of this one, is a matter of autograd. Otherwise its
    // fallback would only box the arguments.
    std::optional<at::AutoDispatchBelowADInplaceOrView> below_autograd;
    if (!at::GradMode::is_enabled() && !torch::autograd::isFwGradDefinedTensorList(grads))
      below_autograd.emplace();
    variable_list found = backward_operator().call(given, u.x(), u.batch_sizes, u.hx, u.weights, cell_,
                                                   bidirectional_, batch_first_, saved, wanted);
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
variable_list record_forward(const Tensor& x, const optional<Tensor>& batch_sizes, at::TensorList hx,
                             at::TensorList weights, const std::string& cell, bool bidirectional,
                             bool batch_first, bool checkpoint_gates, bool save) {
  const variable_list inputs = list_inputs(x, hx, weights);
  if (torch::autograd::isFwGradDefinedTensorList(inputs)) {
    check_layer(x, batch_sizes, hx, weights, cell, bidirectional, batch_first);
    return differentiable_forward(x, batch_sizes, hx, weights, cell, bidirectional, batch_first, save);
  }
  const bool needed = torch::autograd::compute_requires_grad(inputs);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  variable_list outputs = forward_operator().call(x, batch_sizes, hx, weights, cell, bidirectional,
                                                  batch_first, save || (needed && !checkpoint_gates));
  if (!needed) return outputs;

  const auto node = make_node<LayerBackward>(inputs, hx.size(), batch_sizes, cell, bidirectional, batch_first,
                                             checkpoint_gates);
  const bool packed = batch_sizes.has_value();
  const size_t results = LayerBackward::count_results(x, packed, cell);
  for (const auto i : c10::irange(results)) torch::autograd::set_history(outputs[i], node);
  if (!checkpoint_gates) {
    const at::TensorList saved = LayerBackward::saved_of(outputs, x, packed, cell);
    for (const Tensor& tensor : saved) node->save(tensor, /*is_output=*/&tensor == outputs.data());
  }
  if (!save) outputs.resize(results);
  return outputs;
}

variable_list layer(const Tensor& x, const optional<Tensor>& batch_sizes, at::TensorList hx,
                    at::TensorList weights, const std::string& cell, bool bidirectional, bool batch_first,
                    bool checkpoint_gates) {
  return record_forward(x, batch_sizes, hx, weights, cell, bidirectional, batch_first, checkpoint_gates,
                        false);
}

variable_list layer_forward(const Tensor& x, const optional<Tensor>& batch_sizes, at::TensorList hx,
                            at::TensorList weights, const std::string& cell, bool bidirectional,
                            bool batch_first, bool save) {
  return record_forward(x, batch_sizes, hx, weights, cell, bidirectional, batch_first, false, save);
}

variable_list layer_backward(const c10::List<optional<Tensor>>& grads, const Tensor& x,
                             const optional<Tensor>& batch_sizes, at::TensorList hx, at::TensorList weights,
                             const std::string& cell, bool bidirectional, bool batch_first,
                             at::TensorList saved, c10::List<bool> wanted) {
  const variable_list inputs = list_inputs(x, hx, weights);
  variable_list given;
  std::vector<bool> is_given;
  variable_list all_grads;
  for (const optional<Tensor> grad : grads) {
    is_given.push_back(grad.has_value() && grad->defined());
    all_grads.push_back(grad.value_or(Tensor()));
    if (is_given.back()) given.push_back(*grad);
  }
  variable_list sources = given;
  sources.insert(sources.end(), inputs.begin(), inputs.end());
  if (torch::autograd::isFwGradDefinedTensorList(sources)) {
    return differentiable_backward(all_grads, x, batch_sizes, hx, weights, cell, bidirectional, batch_first,
                                   wanted);
  }
  const bool needed = torch::autograd::compute_requires_grad(sources);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  variable_list outputs = backward_operator().call(grads, x, batch_sizes, hx, weights, cell, bidirectional,
                                                   batch_first, saved, wanted);
  if (!needed) return outputs;
  const auto node = make_node<LayerDoubleBackward>(torch::autograd::collect_next_edges(sources), inputs,
                                                   hx.size(), batch_sizes, cell, bidirectional, batch_first,
                                                   std::move(is_given), std::move(wanted));
  for (const Tensor& grad : given) node->save(grad);
  for (Tensor& output : outputs) torch::autograd::set_history(output, node);
  return outputs;
}

// torch.autograd.grad(is_grads_batched=True) maps over gradients with a vmap of its own, older than torch.func's.
variable_list map_backward(const c10::List<optional<Tensor>>& grads, const Tensor& x,
                           const optional<Tensor>& batch_sizes, at::TensorList hx, at::TensorList weights,
                           const std::string& cell, bool bidirectional, bool batch_first,
                           at::TensorList /*saved*/, c10::List<bool> wanted) {
  variable_list given;
  for (const optional<Tensor> grad : grads) given.push_back(grad.value_or(Tensor()));
  return differentiable_backward(given, x, batch_sizes, hx, weights, cell, bidirectional, batch_first,
                                 wanted);
}

}  // namespace

TORCH_LIBRARY_IMPL(fastrnn, Batched, m) { m.impl("layer_backward", map_backward); }
TORCH_LIBRARY_IMPL(fastrnn, Autograd, m) {
  m.impl("layer", layer);
  m.impl("layer_forward", layer_forward);
  m.impl("layer_backward", layer_backward);
}

}  // namespace fastrnn::torch_ops
