/* A libnvidia-ml.so.1 for machines without GPUs: the fleet comes from NVML_STUB="name@memMiB[@broken],…".

   Energy grows by 1000 mJ with each reading of a device, utilisation is always 50 %; a broken device answers nothing
   but its UUID. NVML_STUB unset: no driver. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15 };

typedef struct {
    char name[96];
    unsigned long long memory;
    unsigned long long energy;
    int broken;
    unsigned index;
} device;

typedef struct {
    unsigned long long total, free, used;
} memory;

typedef struct {
    unsigned gpu, memory;
} utilisation;

typedef struct {
    char legacy[16];
    unsigned domain, bus, device, id, subsystem;
    char bus_id[32];
} pci;

static device devices[16];
static unsigned count;

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    const char *fleet = getenv("NVML_STUB");
    if (!fleet) return DRIVER_NOT_LOADED;
    char text[1024], *rest;
    snprintf(text, sizeof text, "%s", fleet);
    count = 0;
    for (char *item = strtok_r(text, ",", &rest); item && count < 16; item = strtok_r(NULL, ",", &rest)) {
        device *d = &devices[count];
        char *at = strchr(item, '@');
        d->broken = at && strstr(at, "broken") != NULL;
        d->memory = at ? strtoull(at + 1, NULL, 10) << 20 : 0;
        if (at) *at = 0;
        snprintf(d->name, sizeof d->name, "%s", item);
        d->energy = 0;
        d->index = count++;
    }
    return SUCCESS;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int code) {
    return code == GPU_IS_LOST ? "GPU is lost" : code == DRIVER_NOT_LOADED ? "Driver Not Loaded" : "Error";
}

int nvmlDeviceGetCount_v2(unsigned *n) { *n = count; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned i, device **d) {
    if (i >= count) return INVALID_ARGUMENT;
    *d = &devices[i];
    return SUCCESS;
}

int nvmlDeviceGetUUID(device *d, char *text, unsigned size) {
    snprintf(text, size, "GPU-00000000-0000-0000-0000-%012x", d->index);
    return SUCCESS;
}

int nvmlDeviceGetName(device *d, char *text, unsigned size) {
    if (d->broken) return GPU_IS_LOST;
    snprintf(text, size, "%s", d->name);
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(device *d, memory *m) {
    if (d->broken) return GPU_IS_LOST;
    m->total = m->free = d->memory;
    m->used = 0;
    return SUCCESS;
}

int nvmlDeviceGetPciInfo_v3(device *d, pci *p) {
    memset(p, 0, sizeof *p);
    snprintf(p->bus_id, sizeof p->bus_id, "00000000:%02X:00.0", 16 + d->index);
    return SUCCESS;
}

int nvmlDeviceGetMinorNumber(device *d, unsigned *n) { *n = d->index; return SUCCESS; }

int nvmlDeviceGetTotalEnergyConsumption(device *d, unsigned long long *mj) {
    if (d->broken) return GPU_IS_LOST;
    *mj = d->energy += 1000;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(device *d, utilisation *u) {
    if (d->broken) return GPU_IS_LOST;
    u->gpu = 50;
    u->memory = 10;
    return SUCCESS;
}

/* One link of NVLink, PCIe 4.0 x16, 61 degrees, 250 of 700 W, and a process of 1 GiB on device 0. */

int nvmlDeviceGetTemperature(device *d, int sensor, unsigned *degrees) {
    (void)sensor;
    if (d->broken) return GPU_IS_LOST;
    *degrees = 61;
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(device *d, unsigned *mw) {
    if (d->broken) return GPU_IS_LOST;
    *mw = 250000;
    return SUCCESS;
}

int nvmlDeviceGetPowerManagementLimit(device *d, unsigned *mw) {
    if (d->broken) return GPU_IS_LOST;
    *mw = 700000;
    return SUCCESS;
}

int nvmlDeviceGetCurrPcieLinkGeneration(device *d, unsigned *n) { *n = 4; return d->broken ? GPU_IS_LOST : SUCCESS; }
int nvmlDeviceGetCurrPcieLinkWidth(device *d, unsigned *n) { *n = 16; return d->broken ? GPU_IS_LOST : SUCCESS; }

int nvmlDeviceGetNvLinkState(device *d, unsigned number, unsigned *active) {
    if (d->broken) return GPU_IS_LOST;
    *active = number == 0;
    return SUCCESS;
}

typedef struct {
    unsigned pid;
    unsigned long long used;
    unsigned instance, compute_instance;
} process;

int nvmlDeviceGetComputeRunningProcesses_v3(device *d, unsigned *n, process *found) {
    if (d->broken) return GPU_IS_LOST;
    if (d->index != 0) return *n = 0, SUCCESS;
    if (*n < 1 || !found) return *n = 1, INSUFFICIENT_SIZE;
    *n = 1;
    found[0] = (process){.pid = 4321, .used = 1ull << 30};
    return SUCCESS;
}

int nvmlSystemGetDriverVersion(char *text, unsigned size) {
    snprintf(text, size, "580.00");
    return SUCCESS;
}
