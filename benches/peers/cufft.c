// libcufft.so.11 (CUDA 12), as far as ASTRA 2.5 calls it, by way of libcufft.so.12 (CUDA 13), which is what PyTorch for CUDA 13 brings: NVIDIA's own wheel of the
// former has 190 MB. These five functions are the same in both.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

static void *of_library(const char *name) {
    static void *library;
    if (!library && !(library = dlopen("libcufft.so.12", RTLD_NOW))) {
        fprintf(stderr, "libcufft.so.11: %s\n", dlerror());
        exit(3);
    }
    return dlsym(library, name);
}

// Plans are ints, streams, transforms and data pointers.
int cufftPlan1d(int *plan, int size, int type, int batch) { return ((int (*)(int *, int, int, int))of_library("cufftPlan1d"))(plan, size, type, batch); }
int cufftDestroy(int plan) { return ((int (*)(int))of_library("cufftDestroy"))(plan); }
int cufftSetStream(int plan, void *stream) { return ((int (*)(int, void *))of_library("cufftSetStream"))(plan, stream); }
int cufftExecR2C(int plan, void *from, void *to) { return ((int (*)(int, void *, void *))of_library("cufftExecR2C"))(plan, from, to); }
int cufftExecC2R(int plan, void *from, void *to) { return ((int (*)(int, void *, void *))of_library("cufftExecC2R"))(plan, from, to); }
