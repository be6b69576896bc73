/* A libnvidia-ml.so.1 for hosts without GPUs. STUB_GPUS="NVIDIA H100 80GB HBM3*2@81559" is name*count@MiB;
   STUB_SEED makes the UUIDs of this host differ from others'. What it does not know it does not export. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } memory_v2_t;
typedef struct { char bus_id_legacy[16]; unsigned int domain, bus, device, pci_device, pci_subsystem; char bus_id[32]; } pci_t;
typedef struct { unsigned int gpu, memory; } rates_t;

static char model[96];
static unsigned int count;
static unsigned long long mebibytes;
static int handles[64];

int nvmlInitWithFlags(unsigned int flags) {
  const char *gpus = getenv("STUB_GPUS");
  (void)flags;
  return gpus && sscanf(gpus, "%95[^*]*%u@%llu", model, &count, &mebibytes) == 3 && count <= 64 ? 0 : 9;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlInit(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return code == 9 ? "Driver Not Loaded" : "Error of the stub"; }
int nvmlSystemGetDriverVersion(char *text, unsigned int size) { snprintf(text, size, "550.54.15"); return 0; }

int nvmlDeviceGetCount_v2(unsigned int *number) { *number = count; return 0; }
int nvmlDeviceGetCount(unsigned int *number) { return nvmlDeviceGetCount_v2(number); }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
  if (index >= count) return 2;
  handles[index] = (int)index;
  *device = &handles[index];
  return 0;
}
int nvmlDeviceGetHandleByIndex(unsigned int index, void **device) { return nvmlDeviceGetHandleByIndex_v2(index, device); }
int nvmlDeviceGetUUID(void *device, char *text, unsigned int size) {
  const char *seed = getenv("STUB_SEED");
  snprintf(text, size, "GPU-%08x-0000-4000-8000-%012x", (unsigned int)atoi(seed ? seed : "0"), (unsigned int)*(int *)device);
  return 0;
}
int nvmlDeviceGetName(void *device, char *text, unsigned int size) { (void)device; snprintf(text, size, "%s", model); return 0; }
int nvmlDeviceGetMinorNumber(void *device, unsigned int *number) { *number = (unsigned int)*(int *)device; return 0; }
int nvmlDeviceGetMemoryInfo(void *device, memory_t *memory) {
  (void)device;
  memory->total = memory->free = mebibytes << 20;
  memory->used = 0;
  return 0;
}
int nvmlDeviceGetMemoryInfo_v2(void *device, memory_v2_t *memory) {
  (void)device;
  memory->total = memory->free = mebibytes << 20;
  memory->used = memory->reserved = 0;
  return 0;
}
int nvmlDeviceGetPciInfo_v3(void *device, pci_t *pci) {
  memset(pci, 0, sizeof *pci);
  snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:%02X:00.0", *(int *)device);
  return 0;
}
int nvmlDeviceGetUtilizationRates(void *device, rates_t *rates) { (void)device; rates->gpu = rates->memory = 0; return 0; }
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *mj) { (void)device; *mj = 1000; return 0; }
