/* A driver for tests: libnvidia-ml.so.1 with FAKE_NVML_COUNT GPUs of FAKE_NVML_MIB MiB each, a quarter of it taken.
   With FAKE_NVML_ONE set, all of them have the same UUID, as if each number meant one and the same GPU. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int R;
typedef void *D;
typedef unsigned long long U64;

static int count(void) { const char *e = getenv("FAKE_NVML_COUNT"); return e ? atoi(e) : 2; }
static U64 memory(void) { const char *e = getenv("FAKE_NVML_MIB"); return (e ? strtoull(e, 0, 10) : 16384ULL) << 20; }
static unsigned number(D d) { return (unsigned)((long)d - 1); }

R nvmlInitWithFlags(unsigned flags) { (void)flags; return 0; }
R nvmlInit_v2(void) { return 0; }
R nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(R r) { return r == 3 ? "Not Supported" : "fake NVML error"; }
R nvmlSystemGetDriverVersion(char *b, unsigned n) { snprintf(b, n, "999.0"); return 0; }

R nvmlDeviceGetCount_v2(unsigned *n) { *n = count(); return 0; }
R nvmlDeviceGetHandleByIndex_v2(unsigned i, D *d) { if ((int)i >= count()) return 2; *d = (D)(long)(i + 1); return 0; }
R nvmlDeviceGetHandleByUUID(const char *u, D *d) {
    unsigned i;
    if (sscanf(u, "GPU-00000000-0000-0000-0000-%12x", &i) != 1 || (int)i >= count()) return 6;
    *d = (D)(long)(i + 1);
    return 0;
}
R nvmlDeviceGetUUID(D d, char *b, unsigned n) {
    snprintf(b, n, "GPU-00000000-0000-0000-0000-%012x", getenv("FAKE_NVML_ONE") ? 0 : number(d));
    return 0;
}
R nvmlDeviceGetName(D d, char *b, unsigned n) { snprintf(b, n, "Fake GPU %u", number(d)); return 0; }
R nvmlDeviceGetIndex(D d, unsigned *i) { *i = number(d); return 0; }

struct Memory { U64 total, free, used; };
struct Memory2 { unsigned version; U64 total, reserved, free, used; };
struct Use { unsigned gpu, memory; };
R nvmlDeviceGetMemoryInfo(D d, struct Memory *m) {
    (void)d; m->total = memory(); m->used = memory() / 4; m->free = m->total - m->used; return 0;
}
R nvmlDeviceGetMemoryInfo_v2(D d, struct Memory2 *m) {
    (void)d; m->total = memory(); m->reserved = 0; m->used = memory() / 4; m->free = m->total - m->used; return 0;
}
R nvmlDeviceGetUtilizationRates(D d, struct Use *u) { (void)d; u->gpu = 50; u->memory = 25; return 0; }

R nvmlDeviceGetCpuAffinity(D d, unsigned n, unsigned long *s) { (void)d; memset(s, 0, n * sizeof *s); s[0] = 3; return 0; }
R nvmlDeviceGetMigMode(D d, unsigned *a, unsigned *b) { (void)d; (void)a; (void)b; return 3; }
R nvmlDeviceIsMigDeviceHandle(D d, unsigned *m) { (void)d; *m = 0; return 0; }
R nvmlDeviceGetComputeRunningProcesses_v2(D d, unsigned *n, void *p) { (void)d; (void)p; *n = 0; return 0; }
R nvmlDeviceGetComputeRunningProcesses_v3(D d, unsigned *n, void *p) { (void)d; (void)p; *n = 0; return 0; }
