// libneuralnetworks.so with one device that computes: what its operations are told `nnapi_operations.cc`, it runs
// them one after the other. It takes none that it cannot run, and compiles no model that has one.
//
// NNAPI_LEVEL=29..31 is the feature level of the device, else that of the runtime, which is told by the functions
// that are there: build with -DLEVEL=29, 30 or 31. What it refuses, it tells on stderr.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <set>

#include "nnapi_operations.h"
#include "tensorflow/lite/nnapi/NeuralNetworksTypes.h"

#define API extern "C" __attribute__((visibility("default")))

namespace {
int device;

struct Memory {
  uint8_t* data;
  size_t bytes;
};

struct Compilation {
  Model model;
  std::vector<Step> steps;
  Values values;  // constants, and what an execution makes
  std::mutex running;
};

struct Execution {
  Compilation* compilation;
  std::vector<const uint8_t*> inputs;
  std::vector<uint8_t*> outputs;
  bool may_be_padded = false;
};

// Runs `work`; the result is NNAPI's.
template <typename Work>
int Try(int failed, const Work& work) {
  try {
    work();
    return ANEURALNETWORKS_NO_ERROR;
  } catch (const std::exception& why) {
    std::fprintf(stderr, "NNAPI driver: %s\n", why.what());
    return failed;
  }
}

Model& ModelOf(void* model) { return *static_cast<Model*>(model); }

Operand& OperandOf(void* model, uint32_t index) {
  auto& operands = ModelOf(model).operands;
  if (index >= operands.size()) throw Refused("there is no operand " + std::to_string(index));
  return operands[index];
}

void SetValue(void* model, int32_t index, const void* data, size_t bytes) {
  Operand& operand = OperandOf(model, index);
  if (bytes != Bytes(operand)) throw Refused("a constant has another size than its operand");
  const auto* from = static_cast<const uint8_t*>(data);
  operand.bytes.assign(from, from + bytes);
  operand.is_constant = true;
}

// Where `length` bytes of the memory begin.
uint8_t* Inside(const void* memory, size_t offset, size_t length) {
  const auto* held = static_cast<const Memory*>(memory);
  if (offset > held->bytes || length > held->bytes - offset) throw Refused("a range leaves its memory");
  return held->data + offset;
}

std::unique_ptr<Compilation> Compiled(const Model& model) {
  auto made = std::make_unique<Compilation>();
  made->model = model;
  made->values.resize(model.operands.size());
  std::set<uint32_t> known(model.inputs.begin(), model.inputs.end());
  for (uint32_t i = 0; i < model.operands.size(); i++) {
    const Operand& operand = model.operands[i];
    if (!operand.is_constant) continue;
    known.insert(i);
    made->values[i] = Unpack(operand, operand.bytes.data());
  }
  for (const Operation& operation : model.operations) {
    made->steps.push_back(Compile(model, operation));
    for (const uint32_t input : operation.inputs) {
      if (!known.count(input)) throw Refused("operand " + std::to_string(input) + " is read before it is made");
    }
    known.insert(operation.outputs.begin(), operation.outputs.end());
  }
  for (const uint32_t output : model.outputs) {
    if (!known.count(output)) throw Refused("the output " + std::to_string(output) + " is never made");
  }
  return made;
}

// Checks the buffer for the model's input or output `index`, and sets its place in `buffers`.
template <typename Buffer>
void SetBuffer(const Execution& execution, const std::vector<uint32_t>& ids, std::vector<Buffer>& buffers,
               uint32_t index, const void* type, Buffer data, size_t bytes) {
  if (index >= ids.size()) throw Refused("the model has no input or output " + std::to_string(index));
  if (type != nullptr) throw Refused("a shape is told with the execution");
  const size_t needed = Bytes(execution.compilation->model.operands[ids[index]]);
  if (bytes < needed || (bytes > needed && !execution.may_be_padded)) throw Refused("a buffer has another size");
  buffers[index] = data;
}

void Compute(Execution& execution) {
  Compilation& compiled = *execution.compilation;
  const Model& model = compiled.model;
  const std::lock_guard<std::mutex> lock(compiled.running);
  for (size_t i = 0; i < model.inputs.size(); i++) {
    if (execution.inputs[i] == nullptr) throw Refused("input " + std::to_string(i) + " is not set");
    compiled.values[model.inputs[i]] = Unpack(model.operands[model.inputs[i]], execution.inputs[i]);
  }
  for (const Step& step : compiled.steps) step(compiled.values);
  for (size_t i = 0; i < model.outputs.size(); i++) {
    if (execution.outputs[i] == nullptr) throw Refused("output " + std::to_string(i) + " is not set");
    Pack(model.operands[model.outputs[i]], compiled.values[model.outputs[i]], execution.outputs[i]);
  }
}
}  // namespace

API int ANeuralNetworks_getDeviceCount(uint32_t* count) { *count = 1; return 0; }
API int ANeuralNetworks_getDevice(uint32_t, void** found) { *found = &device; return 0; }
API int ANeuralNetworksDevice_getName(const void*, const char** name) { *name = "computing"; return 0; }
API int ANeuralNetworksDevice_getVersion(const void*, const char** version) { *version = "1"; return 0; }
API int ANeuralNetworksDevice_getType(const void*, int32_t* type) { *type = 2; return 0; }  // a CPU
API int ANeuralNetworksDevice_getFeatureLevel(const void*, int64_t* level) {
  const char* told = std::getenv("NNAPI_LEVEL");
  *level = told ? std::atoi(told) : LEVEL;
  return 0;
}

API int ANeuralNetworksModel_create(void** model) { *model = new Model; return 0; }
API void ANeuralNetworksModel_free(void* model) { delete static_cast<Model*>(model); }
API int ANeuralNetworksModel_addOperand(void* model, const ANeuralNetworksOperandType* type) {
  Operand operand;
  operand.type = type->type;
  if (type->dimensionCount) operand.shape.assign(type->dimensions, type->dimensions + type->dimensionCount);
  operand.scale = type->scale;
  operand.zero_point = type->zeroPoint;
  ModelOf(model).operands.push_back(std::move(operand));
  return 0;
}
API int ANeuralNetworksModel_setOperandValue(void* model, int32_t index, const void* data, size_t bytes) {
  return Try(ANEURALNETWORKS_BAD_DATA, [&] { SetValue(model, index, data, bytes); });
}
API int ANeuralNetworksModel_setOperandValueFromMemory(
    void* model, int32_t index, const void* memory, size_t offset, size_t bytes) {
  return Try(ANEURALNETWORKS_BAD_DATA, [&] { SetValue(model, index, Inside(memory, offset, bytes), bytes); });
}
API int ANeuralNetworksModel_setOperandSymmPerChannelQuantParams(
    void* model, int32_t index, const ANeuralNetworksSymmPerChannelQuantParams* given) {
  return Try(ANEURALNETWORKS_BAD_DATA, [&] {
    Operand& operand = OperandOf(model, index);
    operand.scales.assign(given->scales, given->scales + given->scaleCount);
    operand.axis = given->channelDim;
  });
}
API int ANeuralNetworksModel_addOperation(
    void* model, int type, uint32_t input_count, const uint32_t* inputs, uint32_t output_count,
    const uint32_t* outputs) {
  return Try(ANEURALNETWORKS_BAD_DATA, [&] {
    Operation made{type, {inputs, inputs + input_count}, {outputs, outputs + output_count}};
    for (const uint32_t index : made.inputs) OperandOf(model, index);
    for (const uint32_t index : made.outputs) OperandOf(model, index);
    ModelOf(model).operations.push_back(std::move(made));
  });
}
API int ANeuralNetworksModel_identifyInputsAndOutputs(
    void* model, uint32_t input_count, const uint32_t* inputs, uint32_t output_count, const uint32_t* outputs) {
  return Try(ANEURALNETWORKS_BAD_DATA, [&] {
    for (uint32_t i = 0; i < input_count; i++) OperandOf(model, inputs[i]);
    for (uint32_t i = 0; i < output_count; i++) OperandOf(model, outputs[i]);
    ModelOf(model).inputs.assign(inputs, inputs + input_count);
    ModelOf(model).outputs.assign(outputs, outputs + output_count);
  });
}
API int ANeuralNetworksModel_relaxComputationFloat32toFloat16(void*, bool) { return 0; }
API int ANeuralNetworksModel_finish(void*) { return 0; }
API int ANeuralNetworksModel_getSupportedOperationsForDevices(
    const void* model, const void* const*, uint32_t, bool* supported) {
  const auto& known = *static_cast<const Model*>(model);
  for (size_t i = 0; i < known.operations.size(); i++) {
    supported[i] = Try(1, [&] { Compile(known, known.operations[i]); }) == 0;
  }
  return 0;
}

API int ANeuralNetworksCompilation_create(void* model, void** made) {
  auto* compilation = new Compilation;
  compilation->model = ModelOf(model);
  *made = compilation;
  return 0;
}
API int ANeuralNetworksCompilation_createForDevices(void* model, const void* const*, uint32_t, void** made) {
  return ANeuralNetworksCompilation_create(model, made);
}
API void ANeuralNetworksCompilation_free(void* compilation) { delete static_cast<Compilation*>(compilation); }
API int ANeuralNetworksCompilation_setPreference(void*, int32_t) { return 0; }
API int ANeuralNetworksCompilation_setCaching(void*, const char*, const uint8_t*) { return 0; }
API int ANeuralNetworksCompilation_finish(void* compilation) {
  return Try(ANEURALNETWORKS_BAD_DATA, [&] {
    auto* given = static_cast<Compilation*>(compilation);
    const auto made = Compiled(given->model);
    given->steps = std::move(made->steps);
    given->values = std::move(made->values);
  });
}

API int ANeuralNetworksExecution_create(void* compilation, void** made) {
  auto* compiled = static_cast<Compilation*>(compilation);
  auto* execution = new Execution{compiled, {}, {}};
  execution->inputs.resize(compiled->model.inputs.size());
  execution->outputs.resize(compiled->model.outputs.size());
  *made = execution;
  return 0;
}
API void ANeuralNetworksExecution_free(void* execution) { delete static_cast<Execution*>(execution); }
API int ANeuralNetworksExecution_setInput(
    void* execution, int32_t index, const void* type, const void* data, size_t bytes) {
  auto& given = *static_cast<Execution*>(execution);
  return Try(ANEURALNETWORKS_BAD_DATA, [&] {
    const auto& ids = given.compilation->model.inputs;
    SetBuffer(given, ids, given.inputs, index, type, static_cast<const uint8_t*>(data), bytes);
  });
}
API int ANeuralNetworksExecution_setInputFromMemory(
    void* execution, int32_t index, const void* type, const void* memory, size_t offset, size_t bytes) {
  return Try(ANEURALNETWORKS_BAD_DATA, [&] {
    if (ANeuralNetworksExecution_setInput(execution, index, type, Inside(memory, offset, bytes), bytes)) {
      throw Refused("an input's memory does not fit");
    }
  });
}
API int ANeuralNetworksExecution_setOutput(
    void* execution, int32_t index, const void* type, void* data, size_t bytes) {
  auto& given = *static_cast<Execution*>(execution);
  return Try(ANEURALNETWORKS_BAD_DATA, [&] {
    const auto& ids = given.compilation->model.outputs;
    SetBuffer(given, ids, given.outputs, index, type, static_cast<uint8_t*>(data), bytes);
  });
}
API int ANeuralNetworksExecution_setOutputFromMemory(
    void* execution, int32_t index, const void* type, const void* memory, size_t offset, size_t bytes) {
  return Try(ANEURALNETWORKS_BAD_DATA, [&] {
    if (ANeuralNetworksExecution_setOutput(execution, index, type, Inside(memory, offset, bytes), bytes)) {
      throw Refused("an output's memory does not fit");
    }
  });
}
API int ANeuralNetworksExecution_compute(void* execution) {
  return Try(ANEURALNETWORKS_OP_FAILED, [&] { Compute(*static_cast<Execution*>(execution)); });
}
// It is over when this comes back: there is nothing to wait for.
API int ANeuralNetworksExecution_startCompute(void* execution, void** event) {
  *event = nullptr;
  return ANeuralNetworksExecution_compute(execution);
}
API int ANeuralNetworksEvent_wait(void*) { return 0; }
API void ANeuralNetworksEvent_free(void*) {}

API int ANeuralNetworksMemory_createFromFd(size_t bytes, int protect, int file, size_t offset, void** made) {
  return Try(ANEURALNETWORKS_BAD_DATA, [&] {
    void* data = mmap(nullptr, bytes, protect, MAP_SHARED, file, offset);
    if (data == MAP_FAILED) throw Refused("memory cannot be mapped");
    *made = new Memory{static_cast<uint8_t*>(data), bytes};
  });
}
API void ANeuralNetworksMemory_free(void* memory) {
  auto* held = static_cast<Memory*>(memory);
  munmap(held->data, held->bytes);
  delete held;
}

// A burst is only a faster way.
API int ANeuralNetworksBurst_create(void* compilation, void** made) { *made = compilation; return 0; }
API void ANeuralNetworksBurst_free(void*) {}
API int ANeuralNetworksExecution_burstCompute(void* execution, void*) {
  return ANeuralNetworksExecution_compute(execution);
}

#if LEVEL >= 30
API int ANeuralNetworksCompilation_setTimeout(void*, uint64_t) { return 0; }
API int ANeuralNetworksCompilation_setPriority(void*, int) { return 0; }
API int ANeuralNetworksExecution_setTimeout(void*, uint64_t) { return 0; }
API int ANeuralNetworksExecution_setLoopTimeout(void*, uint64_t) { return 0; }
#endif
#if LEVEL >= 31
API int64_t ANeuralNetworks_getRuntimeFeatureLevel() { return 31; }
API int ANeuralNetworksExecution_enableInputAndOutputPadding(void* execution, bool enable) {
  static_cast<Execution*>(execution)->may_be_padded = enable;
  return 0;
}
API int ANeuralNetworksExecution_setReusable(void*, bool) { return 0; }
#endif
