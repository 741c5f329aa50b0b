// Stands in for Qualcomm's SDK (libQnnHtp.so and its like): a backend that validates every operation and can
// compile none. What LiteRT's plugin then takes is what the plugin's own rules allow.
//
// QNN hands out a table of functions; here they all answer 0 (success), but for those that the plugin needs
// something from.
#include <stdint.h>

#define API __attribute__((visibility("default")))
#define FUNCTIONS 100

typedef struct {
  uint32_t major, minor, patch;
} Version;

typedef struct {
  uint32_t backend;
  const char *name;
  Version core, own;
  void *functions[FUNCTIONS];
} Interface;

typedef struct {
  uint32_t backend;
  const char *name;
  Version version;
  void *functions[FUNCTIONS];
} SystemInterface;

static uint64_t agree(void) { return 0; }

static uint64_t build_id(const char **id) {
  *id = "v2.50.0.260828000000_0";
  return 0;
}

static uint64_t create(void *parent, void *config, void **handle) {
  *handle = (void *)16;
  return 0;
}

// Of the interface's functions by their place: backendCreate, backendGetBuildId, logCreate, deviceCreate.
enum { BACKEND_CREATE = 1, BUILD_ID = 4, LOG_CREATE = 25, DEVICE_CREATE = 40 };

API uint64_t QnnInterface_getProviders(const Interface ***providers, uint32_t *count) {
  static Interface htp = {6, "fake", {2, 39, 0}, {5, 50, 0}, {0}};
  static const Interface *all[] = {&htp};
  for (int i = 0; i < FUNCTIONS; i++) htp.functions[i] = (void *)agree;
  htp.functions[BACKEND_CREATE] = htp.functions[LOG_CREATE] = htp.functions[DEVICE_CREATE] = (void *)create;
  htp.functions[BUILD_ID] = (void *)build_id;
  *providers = all;
  *count = 1;
  return 0;
}

API uint64_t QnnSystemInterface_getProviders(const SystemInterface ***providers, uint32_t *count) {
  static SystemInterface system = {0, "fake", {1, 14, 0}, {0}};
  static const SystemInterface *all[] = {&system};
  for (int i = 0; i < FUNCTIONS; i++) system.functions[i] = (void *)agree;
  *providers = all;
  *count = 1;
  return 0;
}
