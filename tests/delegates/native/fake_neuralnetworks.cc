// libneuralnetworks.so with one device that claims every operation and runs none: what TFLite's NNAPI delegate
// then takes is what the delegate's own rules allow.
//
// NNAPI_LEVEL=27..31 is the feature level of the device. The runtime's own is told by the functions that are
// there, as on Android: build with -DLEVEL=29, 30 or 31.
#include <cstdint>
#include <cstdlib>
#include <sys/mman.h>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

namespace {
int device;
struct Model {
  uint32_t operations = 0;
};
struct Memory {
  void* data;
  size_t bytes;
};
}  // namespace

API int ANeuralNetworks_getDeviceCount(uint32_t* count) { *count = 1; return 0; }
API int ANeuralNetworks_getDevice(uint32_t, void** found) { *found = &device; return 0; }
API int ANeuralNetworksDevice_getName(const void*, const char** name) { *name = "fake"; return 0; }
API int ANeuralNetworksDevice_getVersion(const void*, const char** version) { *version = "1"; return 0; }
API int ANeuralNetworksDevice_getType(const void*, int32_t* type) { *type = 4; return 0; }  // an accelerator
API int ANeuralNetworksDevice_getFeatureLevel(const void*, int64_t* level) {
  *level = std::atoi(std::getenv("NNAPI_LEVEL"));
  return 0;
}

API int ANeuralNetworksModel_create(void** model) { *model = new Model; return 0; }
API void ANeuralNetworksModel_free(void* model) { delete static_cast<Model*>(model); }
API int ANeuralNetworksModel_addOperand(void*, const void*) { return 0; }
API int ANeuralNetworksModel_setOperandValue(void*, int32_t, const void*, size_t) { return 0; }
API int ANeuralNetworksModel_setOperandValueFromMemory(void*, int32_t, const void*, size_t, size_t) { return 0; }
API int ANeuralNetworksModel_setOperandSymmPerChannelQuantParams(void*, int32_t, const void*) { return 0; }
API int ANeuralNetworksModel_addOperation(void* model, int, uint32_t, const uint32_t*, uint32_t, const uint32_t*) {
  static_cast<Model*>(model)->operations++;
  return 0;
}
API int ANeuralNetworksModel_identifyInputsAndOutputs(void*, uint32_t, const uint32_t*, uint32_t, const uint32_t*) {
  return 0;
}
API int ANeuralNetworksModel_relaxComputationFloat32toFloat16(void*, bool) { return 0; }
API int ANeuralNetworksModel_finish(void*) { return 0; }
API int ANeuralNetworksModel_getSupportedOperationsForDevices(
    const void* model, const void* const*, uint32_t, bool* supported) {
  for (uint32_t i = 0; i < static_cast<const Model*>(model)->operations; i++) supported[i] = true;
  return 0;
}

API int ANeuralNetworksCompilation_create(void* model, void** made) { *made = model; return 0; }
API int ANeuralNetworksCompilation_createForDevices(void* model, const void* const*, uint32_t, void** made) {
  *made = model;
  return 0;
}
API void ANeuralNetworksCompilation_free(void*) {}
API int ANeuralNetworksCompilation_setPreference(void*, int32_t) { return 0; }
API int ANeuralNetworksCompilation_setCaching(void*, const char*, const uint8_t*) { return 0; }
API int ANeuralNetworksCompilation_finish(void*) { return 0; }

API int ANeuralNetworksExecution_create(void* compilation, void** made) { *made = compilation; return 0; }
API void ANeuralNetworksExecution_free(void*) {}
API int ANeuralNetworksExecution_setInput(void*, int32_t, const void*, const void*, size_t) { return 0; }
API int ANeuralNetworksExecution_setInputFromMemory(void*, int32_t, const void*, const void*, size_t, size_t) {
  return 0;
}
API int ANeuralNetworksExecution_setOutput(void*, int32_t, const void*, void*, size_t) { return 0; }
API int ANeuralNetworksExecution_setOutputFromMemory(void*, int32_t, const void*, const void*, size_t, size_t) {
  return 0;
}
API int ANeuralNetworksExecution_compute(void*) { return 4; }  // ANEURALNETWORKS_OP_FAILED
API int ANeuralNetworksExecution_startCompute(void*, void**) { return 4; }
API int ANeuralNetworksEvent_wait(void*) { return 4; }
API void ANeuralNetworksEvent_free(void*) {}

API int ANeuralNetworksMemory_createFromFd(size_t bytes, int protect, int file, size_t offset, void** made) {
  *made = new Memory{mmap(nullptr, bytes, protect, MAP_SHARED, file, offset), bytes};
  return 0;
}
API void ANeuralNetworksMemory_free(void* memory) {
  auto* held = static_cast<Memory*>(memory);
  munmap(held->data, held->bytes);
  delete held;
}

#if LEVEL >= 30
API int ANeuralNetworksCompilation_setTimeout(void*, uint64_t) { return 0; }
API int ANeuralNetworksCompilation_setPriority(void*, int) { return 0; }
API int ANeuralNetworksExecution_setTimeout(void*, uint64_t) { return 0; }
API int ANeuralNetworksExecution_setLoopTimeout(void*, uint64_t) { return 0; }
#endif
#if LEVEL >= 31
API int64_t ANeuralNetworks_getRuntimeFeatureLevel() { return 31; }
API int ANeuralNetworksExecution_enableInputAndOutputPadding(void*, bool) { return 0; }
API int ANeuralNetworksExecution_setReusable(void*, bool) { return 0; }
#endif
