// Stands in for MediaTek's SDK (libneuron_adapter.so), version 8.2: LiteRT's plugin opens it before it chooses
// operators, and asks it nothing but its version. Nothing is compiled.
#include <stdint.h>

#define API __attribute__((visibility("default")))
#define AGREE(name) \
  API int name(void) { return 0; }

API int Neuron_getVersion(uint8_t *version) {
  version[0] = 8;
  version[1] = 2;
  version[2] = 23;
  return 0;
}

AGREE(NeuronCompilation_create)
AGREE(NeuronCompilation_createWithOptions)
AGREE(NeuronCompilation_finish)
AGREE(NeuronCompilation_free)
AGREE(NeuronCompilation_getCompiledNetworkSize)
AGREE(NeuronCompilation_getInputPaddedDimensions)
AGREE(NeuronCompilation_getInputPaddedSize)
AGREE(NeuronCompilation_getOutputPaddedDimensions)
AGREE(NeuronCompilation_getOutputPaddedSize)
AGREE(NeuronCompilation_getSupportedOperations)
AGREE(NeuronCompilation_setL1MemorySizeKb)
AGREE(NeuronCompilation_setOptimizationHint)
AGREE(NeuronCompilation_setOptimizationString)
AGREE(NeuronCompilation_setPreference)
AGREE(NeuronCompilation_setPriority)
AGREE(NeuronCompilation_storeCompiledNetwork)
AGREE(NeuronExecution_compute)
AGREE(NeuronExecution_create)
AGREE(NeuronExecution_free)
AGREE(NeuronExecution_setBoostHint)
AGREE(NeuronExecution_setConfig)
AGREE(NeuronExecution_setInputFromMemory)
AGREE(NeuronExecution_setOutputFromMemory)
AGREE(NeuronMemory_createFromAHardwareBuffer)
AGREE(NeuronMemory_createFromFd)
AGREE(NeuronMemory_free)
AGREE(NeuronModel_addOperand)
AGREE(NeuronModel_addOperation)
AGREE(NeuronModel_create)
AGREE(NeuronModel_finish)
AGREE(NeuronModel_free)
AGREE(NeuronModel_getExtensionOperandType)
AGREE(NeuronModel_getExtensionOperationType)
AGREE(NeuronModel_identifyInputsAndOutputs)
AGREE(NeuronModel_relaxComputationFloat32toFloat16)
AGREE(NeuronModel_restoreFromCompiledNetwork)
AGREE(NeuronModel_setName)
AGREE(NeuronModel_setOperandPerChannelQuantParams)
AGREE(NeuronModel_setOperandSymmPerChannelQuantParams)
AGREE(NeuronModel_setOperandValue)
AGREE(Neuron_getL1MemorySizeKb)
