// TFLite's NNAPI delegate as an external delegate on the first device that libneuralnetworks.so has. It writes down
// what it takes: to the file NNAPI_TAKEN, where that is set, a line for each subgraph, its status (0 is fine) and
// the numbers of the operators that left the execution plan.
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <set>
#include <string>

#include "tensorflow/lite/delegates/nnapi/nnapi_delegate.h"
#include "tensorflow/lite/nnapi/nnapi_implementation.h"

#define API extern "C" __attribute__((visibility("default")))

namespace {
TfLiteStatus (*delegate_prepare)(TfLiteContext*, TfLiteDelegate*) = nullptr;

std::set<int> Plan(TfLiteContext* context) {
  TfLiteIntArray* plan = nullptr;
  context->GetExecutionPlan(context, &plan);
  return {plan->data, plan->data + plan->size};
}

TfLiteStatus Prepare(TfLiteContext* context, TfLiteDelegate* delegate) {
  const std::set<int> before = Plan(context);
  const TfLiteStatus status = delegate_prepare(context, delegate);
  const std::set<int> after = Plan(context);
  const char* taken = std::getenv("NNAPI_TAKEN");
  if (taken == nullptr) return status;
  std::ofstream file(taken, std::ios::app);
  file << status;
  for (const int number : before) {
    if (!after.count(number)) file << ' ' << number;
  }
  file << '\n';
  return status;
}
}  // namespace

API TfLiteDelegate* tflite_plugin_create_delegate(
    const char* const*, const char* const*, size_t, void (*report)(const char*)) {
  const NnApi* nnapi = NnApiImplementation();
  if (!nnapi->nnapi_exists) {
    report("libneuralnetworks.so was not found");
    return nullptr;
  }
  ANeuralNetworksDevice* device = nullptr;
  const char* name = nullptr;
  if (nnapi->ANeuralNetworks_getDevice(0, &device) || nnapi->ANeuralNetworksDevice_getName(device, &name)) {
    report("libneuralnetworks.so has no device");
    return nullptr;
  }
  tflite::StatefulNnApiDelegate::Options options;
  options.accelerator_name = name;
  options.max_number_delegated_partitions = 0;  // as many as there are
  auto* made = new tflite::StatefulNnApiDelegate(options);
  delegate_prepare = made->Prepare;
  made->Prepare = Prepare;
  return made;
}

API void tflite_plugin_destroy_delegate(TfLiteDelegate* delegate) {
  delete static_cast<tflite::StatefulNnApiDelegate*>(delegate);
}
