// An external delegate for TFLite, small and real: it computes float32 ADD and MUL, and fails where it is told to.
//
// Options (all of them text):
//   log=FILE             a JSON object a line: what was made, selected, partitioned, and how often it ran
//   fail=WHERE           create | prepare (of the delegate) | kernel (its preparation) | again (its second one) | invoke
//   invoke_after=N       with fail=invoke or crash=invoke: the N-th invocation is the first that goes wrong
//   crash=WHERE          SIGSEGV at create | prepare | invoke | destroy; at load, if EXTERNAL_DELEGATE_CRASH is set
//   exit=WHERE           ends the process with status 3, likewise
//   hang=WHERE           sleeps for ten minutes, likewise
//   wrong=1              adds 1 to every number
//   dynamic=1            says that tensors may change their shapes
//   nodes=0+3+5          claims these nodes, whatever they are (any separator); they can be prepared, never run
//   subgraph=K           with nodes: only of this subgraph
// Like many a vendor's, it does not expect to be asked to destroy NULL.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tensorflow/lite/builtin_ops.h"
#include "tensorflow/lite/core/c/builtin_op_data.h"
#include "tensorflow/lite/core/c/common.h"

#define API __attribute__((visibility("default")))
#define MAX_RANK 8

typedef struct {
  TfLiteDelegate base;
  FILE* log;
  char fail[16], crash[16], exit[16], hang[16];
  char* nodes;  // NULL: what it can compute
  int only_subgraph, invoke_after, wrong;
  int subgraph, invocations;
} Delegate;

typedef struct {
  int builtin, left, right, out;
  TfLiteFusedActivation activation;
} Step;

typedef struct {
  Delegate* delegate;
  int count, tensors, preparations;
  Step* steps;
  float** kept;  // of each tensor that nobody outside this partition reads: TFLite gives it no memory
  int* is_output;
} Kernel;

static void happen(const Delegate* d, const char* where) {
  if (!strcmp(d->crash, where)) raise(SIGSEGV);
  if (!strcmp(d->exit, where)) {
    fprintf(stderr, "test delegate: this device is not licensed\n");
    _exit(3);
  }
  if (!strcmp(d->hang, where)) sleep(600);
}

static void list(FILE* log, const char* name, const TfLiteIntArray* numbers) {
  fprintf(log, ", \"%s\": [", name);
  for (int i = 0; i < numbers->size; i++) fprintf(log, i ? ", %d" : "%d", numbers->data[i]);
  fprintf(log, "]");
}

static int count_of(const TfLiteTensor* t) {
  int count = 1;
  for (int i = 0; i < t->dims->size; i++) count *= t->dims->data[i];
  return count;
}

// Length of the dimension `back` places before the last one; 1 where the tensor has fewer.
static int side(const TfLiteTensor* t, int back) {
  return back < t->dims->size ? t->dims->data[t->dims->size - 1 - back] : 1;
}

static int computes(TfLiteContext* c, const TfLiteNode* n, const TfLiteRegistration* r) {
  if (r->builtin_code != kTfLiteBuiltinAdd && r->builtin_code != kTfLiteBuiltinMul) return 0;
  const TfLiteTensor* out = &c->tensors[n->outputs->data[0]];
  if (out->type != kTfLiteFloat32 || out->dims->size > MAX_RANK) return 0;
  for (int i = 0; i < 2; i++) {
    const TfLiteTensor* in = &c->tensors[n->inputs->data[i]];
    if (in->type != kTfLiteFloat32 || in->dims->size > out->dims->size) return 0;
    for (int back = 0; back < in->dims->size; back++) {
      if (side(in, back) != 1 && side(in, back) != side(out, back)) return 0;
    }
  }
  return 1;
}

static int claims(const Delegate* d, int node) {
  if (d->only_subgraph >= 0 && d->only_subgraph != d->subgraph) return 0;
  for (char* at = d->nodes; *at;) {
    char* end;
    const long number = strtol(at, &end, 10);
    if (end != at && number == node) return 1;
    at = end == at ? at + 1 : end;
  }
  return 0;
}

static void* kernel_init(TfLiteContext* c, const char* buffer, size_t length) {
  const TfLiteDelegateParams* p = (const TfLiteDelegateParams*)buffer;
  Delegate* d = p->delegate->data_;
  Kernel* k = calloc(1, sizeof *k);
  k->delegate = d;
  k->tensors = c->tensors_size;
  k->kept = calloc(k->tensors, sizeof *k->kept);
  k->is_output = calloc(k->tensors, sizeof *k->is_output);
  for (int i = 0; i < p->output_tensors->size; i++) k->is_output[p->output_tensors->data[i]] = 1;
  if (!d->nodes) {
    k->count = p->nodes_to_replace->size;
    k->steps = calloc(k->count, sizeof *k->steps);
    for (int i = 0; i < k->count; i++) {
      TfLiteNode* n;
      TfLiteRegistration* r;
      c->GetNodeAndRegistration(c, p->nodes_to_replace->data[i], &n, &r);
      const TfLiteFusedActivation activation = r->builtin_code == kTfLiteBuiltinAdd
                                                   ? ((TfLiteAddParams*)n->builtin_data)->activation
                                                   : ((TfLiteMulParams*)n->builtin_data)->activation;
      k->steps[i] = (Step){r->builtin_code, n->inputs->data[0], n->inputs->data[1], n->outputs->data[0], activation};
    }
  }
  if (d->log) {
    fprintf(d->log, "{\"event\": \"partition\", \"subgraph\": %d", d->subgraph);
    list(d->log, "nodes", p->nodes_to_replace);
    list(d->log, "inputs", p->input_tensors);
    list(d->log, "outputs", p->output_tensors);
    fprintf(d->log, "}\n");
    fflush(d->log);
  }
  return k;
}

static void kernel_free(TfLiteContext* c, void* data) {
  Kernel* k = data;
  for (int i = 0; i < k->tensors; i++) free(k->kept[i]);
  free(k->kept);
  free(k->is_output);
  free(k->steps);
  free(k);
}

static TfLiteStatus kernel_prepare(TfLiteContext* c, TfLiteNode* node) {
  Kernel* k = node->user_data;
  if (!strcmp(k->delegate->fail, "kernel") || (!strcmp(k->delegate->fail, "again") && k->preparations++)) {
    c->ReportError(c, "test delegate: told to fail when its kernel is prepared");
    return kTfLiteError;
  }
  for (int i = 0; i < k->count; i++) {
    const int out = k->steps[i].out;
    if (k->is_output[out]) continue;
    free(k->kept[out]);
    k->kept[out] = malloc(sizeof(float) * count_of(&c->tensors[out]));
  }
  return kTfLiteOk;
}

static float* numbers(TfLiteContext* c, Kernel* k, int tensor) {
  return tensor < k->tensors && k->kept[tensor] ? k->kept[tensor] : c->tensors[tensor].data.f;
}

static float activated(float x, TfLiteFusedActivation activation) {
  if (activation == kTfLiteActRelu) return x < 0 ? 0 : x;
  if (activation == kTfLiteActRelu6) return x < 0 ? 0 : x > 6 ? 6 : x;
  if (activation == kTfLiteActReluN1To1) return x < -1 ? -1 : x > 1 ? 1 : x;
  return x;
}

static void run_step(TfLiteContext* c, Kernel* k, const Step* step) {
  const TfLiteTensor *a = &c->tensors[step->left], *b = &c->tensors[step->right], *o = &c->tensors[step->out];
  const float *x = numbers(c, k, step->left), *y = numbers(c, k, step->right);
  float* z = numbers(c, k, step->out);
  const int count = count_of(o);
  for (int i = 0; i < count; i++) {
    int rest = i, at_x = 0, at_y = 0, stride_x = 1, stride_y = 1;
    for (int back = 0; back < o->dims->size; back++) {
      const int at = rest % side(o, back);
      rest /= side(o, back);
      if (side(a, back) > 1) at_x += at * stride_x;
      if (side(b, back) > 1) at_y += at * stride_y;
      stride_x *= side(a, back);
      stride_y *= side(b, back);
    }
    const float value = step->builtin == kTfLiteBuiltinAdd ? x[at_x] + y[at_y] : x[at_x] * y[at_y];
    z[i] = activated(value, step->activation) + k->delegate->wrong;
  }
}

static TfLiteStatus kernel_invoke(TfLiteContext* c, TfLiteNode* node) {
  Kernel* k = node->user_data;
  Delegate* d = k->delegate;
  if (d->nodes) {
    c->ReportError(c, "test delegate: claimed nodes that it cannot run");
    return kTfLiteError;
  }
  if (++d->invocations >= d->invoke_after) {
    happen(d, "invoke");
    if (!strcmp(d->fail, "invoke")) {
      c->ReportError(c, "test delegate: told to fail at invocation %d", d->invocations);
      return kTfLiteError;
    }
  }
  for (int i = 0; i < k->count; i++) run_step(c, k, &k->steps[i]);
  return kTfLiteOk;
}

static TfLiteStatus delegate_prepare(TfLiteContext* c, TfLiteDelegate* base) {
  Delegate* d = base->data_;
  happen(d, "prepare");
  if (!strcmp(d->fail, "prepare")) {
    c->ReportError(c, "test delegate: told to fail when it is prepared");
    return kTfLiteError;
  }
  TfLiteIntArray* plan;
  if (c->GetExecutionPlan(c, &plan) != kTfLiteOk) return kTfLiteError;
  TfLiteIntArray* selected = malloc(sizeof(int) * (plan->size + 1));
  TfLiteIntArray* before = malloc(sizeof(int) * (plan->size + 1));
  memcpy(before, plan, sizeof(int) * (plan->size + 1));  // the runtime's own list changes at the next question
  selected->size = 0;
  for (int i = 0; i < before->size; i++) {
    TfLiteNode* n;
    TfLiteRegistration* r;
    if (c->GetNodeAndRegistration(c, before->data[i], &n, &r) != kTfLiteOk) return kTfLiteError;
    if (d->nodes ? claims(d, before->data[i]) : computes(c, n, r)) selected->data[selected->size++] = before->data[i];
  }
  if (d->log) {
    fprintf(d->log, "{\"event\": \"prepare\", \"subgraph\": %d, \"plan\": %d", d->subgraph, before->size);
    list(d->log, "selected", selected);
    fprintf(d->log, "}\n");
    fflush(d->log);
  }
  TfLiteRegistration kernel;
  memset(&kernel, 0, sizeof kernel);
  kernel.init = kernel_init;
  kernel.free = kernel_free;
  kernel.prepare = kernel_prepare;
  kernel.invoke = kernel_invoke;
  kernel.custom_name = "TestDelegate";
  kernel.builtin_code = kTfLiteBuiltinDelegate;
  kernel.version = 1;
  const TfLiteStatus status = c->ReplaceNodeSubsetsWithDelegateKernels(c, kernel, selected, base);
  d->subgraph++;
  free(selected);
  free(before);
  return status;
}

static Delegate* refused(Delegate* d, void (*report)(const char*), const char* why, const char* value) {
  char text[512];
  snprintf(text, sizeof text, "test delegate: %s %s", why, value);
  report(text);
  free(d->nodes);
  free(d);
  return NULL;
}

API TfLiteDelegate* tflite_plugin_create_delegate(
    const char* const* keys, const char* const* values, size_t count, void (*report)(const char*)) {
  Delegate* d = calloc(1, sizeof *d);
  d->only_subgraph = -1;
  for (size_t i = 0; i < count; i++) {
    const char *key = keys[i], *value = values[i];
    if (!strcmp(key, "log")) {
      d->log = fopen(value, "a");
      if (!d->log) return (TfLiteDelegate*)refused(d, report, "cannot write", value);
    } else if (!strcmp(key, "fail")) {
      snprintf(d->fail, sizeof d->fail, "%s", value);
    } else if (!strcmp(key, "crash")) {
      snprintf(d->crash, sizeof d->crash, "%s", value);
    } else if (!strcmp(key, "exit")) {
      snprintf(d->exit, sizeof d->exit, "%s", value);
    } else if (!strcmp(key, "hang")) {
      snprintf(d->hang, sizeof d->hang, "%s", value);
    } else if (!strcmp(key, "nodes")) {
      d->nodes = strdup(value);
    } else if (!strcmp(key, "subgraph")) {
      d->only_subgraph = atoi(value);
    } else if (!strcmp(key, "invoke_after")) {
      d->invoke_after = atoi(value);
    } else if (!strcmp(key, "wrong")) {
      d->wrong = atoi(value);
    } else if (!strcmp(key, "dynamic")) {
      d->base.flags = atoi(value) ? kTfLiteDelegateFlagsAllowDynamicTensors : kTfLiteDelegateFlagsNone;
    } else {
      return (TfLiteDelegate*)refused(d, report, "unknown option", key);
    }
  }
  happen(d, "create");
  if (!strcmp(d->fail, "create")) return (TfLiteDelegate*)refused(d, report, "no device", "found");
  d->base.data_ = d;
  d->base.Prepare = delegate_prepare;
  if (d->log) {
    fprintf(d->log, "{\"event\": \"created\", \"process\": %d}\n", (int)getpid());
    fflush(d->log);
  }
  return &d->base;
}

API void tflite_plugin_destroy_delegate(TfLiteDelegate* base) {
  Delegate* d = base->data_;
  happen(d, "destroy");
  if (d->log) {
    fprintf(d->log, "{\"event\": \"destroyed\", \"invocations\": %d}\n", d->invocations);
    fclose(d->log);
  }
  free(d->nodes);
  free(d);
}

__attribute__((constructor)) static void loaded(void) {
  if (getenv("EXTERNAL_DELEGATE_CRASH")) raise(SIGSEGV);
}
