// A stand-in for libcuda.so, for tests: the calls that src/compute/cuda/driver makes, on the executor. So the driver's code runs where there
// is no GPU. Kernels come from the executor's library (library.cpp), which the test hands over by diffnr_stand_in_begin.
//
// What it is strict about, so that a mistake shows:
//   order      a stream puts off its work until somebody waits for it (a lazy stream), or does it as soon as what it waits for is done
//              (an eager one): work that is not ordered by events comes in the wrong order on one device or the other
//   contexts   every call needs the thread's context
//   memory     copies stay within device memory; those that do not wait go to and from pinned memory alone
//   shared     more than 48 KiB of dynamic shared memory must have been permitted
//   graphs     what is captured is carried out when its graph is launched, and not before; whoever waits while capturing is refused
//   leaks      diffnr_stand_in_alive counts what was not given back
//
// Devices: 0 to 2 are good (workers 2, 3, 1; threads ascending but on 2; 1 eager in compute, a driver's first stream, 2 in its others, of copies and of
// reads), 3 is of an old architecture, 4 has 1 MiB. DIFFNR_STAND_IN_DEVICES and DIFFNR_STAND_IN_VERSION say otherwise; with
// DIFFNR_STAND_IN_REGISTERS=0 no memory can be registered, and a device whose DIFFNR_STAND_IN_LEAVES_OUT names a kernel does not carry it out
// and says nothing: one that is not sound.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

// CUresult, as far as it is used.
enum Result : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    ALREADY_REGISTERED = 712,
    NOT_REGISTERED = 713,
    NOT_PERMITTED = 800,
    CAPTURE_UNSUPPORTED = 900,
    LAUNCH_FAILED = 719,
};

using Launch = int32_t (*)(const char*, const uint32_t*, const uint32_t*, uint32_t, void**, const size_t*, size_t, uint32_t,
                           uint32_t, char*, size_t);
using ArgumentBytes = int32_t (*)(const char*, size_t*, size_t);

struct Device {
    const char* name;
    int major, minor;
    size_t bytes;
    uint32_t workers;
    bool descending;
    // Which of a driver's three streams are eager, a bit each.
    unsigned eager;
};

const Device DEVICES[] = {
    {"stand-in, lazy", 9, 0, size_t(1) << 30, 2, false, 0},
    {"stand-in, eager compute", 8, 0, size_t(1) << 30, 3, false, 0b001},
    {"stand-in, eager copies", 12, 0, size_t(1) << 30, 1, true, 0b110},
    {"stand-in, old", 7, 5, size_t(1) << 30, 1, false, 0},
    {"stand-in, small", 9, 0, size_t(1) << 20, 1, false, 0},
};

struct Function {
    std::string name;
    std::vector<size_t> argument_bytes;
    int most_shared = 48 * 1024;
};

struct Stream;

struct Event {
    // What it marks: so much work of a stream. The stream may be gone, then it has ended.
    std::weak_ptr<Stream> stream;
    uint64_t work = 0;
};

struct Task {
    std::function<Result()> work;
    // What it waits for; nothing where there is work.
    std::weak_ptr<Stream> of;
    uint64_t until = 0;
};

// What was captured: work, and its kind as cuGraphNodeGetType gives it. An executable graph is another of these.
struct Graph {
    int device;
    std::vector<std::pair<int, std::function<Result()>>> nodes;
};
enum NodeType : int { KERNEL = 0, COPY = 1, FILL = 2, TAKE_MEMORY = 10 };

struct Stream {
    int device;
    bool eager;
    std::shared_ptr<Graph> capture;
    std::deque<Task> tasks;
    uint64_t done = 0;
    Result failed = SUCCESS;

    uint64_t asked() const { return done + tasks.size(); }

    void run_until(uint64_t until) {
        while (done < until && !tasks.empty()) {
            Task task = std::move(tasks.front());
            if (std::shared_ptr<Stream> other = task.of.lock(); other && !task.work) other->run_until(task.until);
            tasks.pop_front();
            done++;
            if (task.work && failed == SUCCESS) failed = task.work();
        }
    }

    // As far as nothing that it waits for is put off.
    void go_on() {
        while (eager && !tasks.empty()) {
            const Task& task = tasks.front();
            if (std::shared_ptr<Stream> other = task.of.lock(); other && !task.work && other->done < task.until) return;
            run_until(done + 1);
        }
    }
};

struct World {
    std::mutex mutex;
    Launch launch = nullptr;
    ArgumentBytes argument_bytes = nullptr;
    bool begun = false;
    int contexts[5] = {};
    std::map<uintptr_t, size_t> device_memory, pinned_memory;
    size_t used[5] = {};
    std::set<void*> modules;
    // The device of everything that was handed out and not given back; kernels live as long as their modules, and are not counted.
    std::map<const void*, int> owners;
    std::map<void*, std::unique_ptr<Function>> functions;
    std::map<void*, std::shared_ptr<Stream>> streams;
    int streams_made[5] = {};
    std::map<void*, std::shared_ptr<Graph>> graphs, executables;
    // What is wrong with the graphs of a device: 1: they take memory, 2: none can be made.
    int graphs_wrong[5] = {};
    std::map<void*, std::unique_ptr<Event>> events;
};

World& world() {
    static World* one = new World;
    return *one;
}

thread_local int current = -1;

int number(const char* name, int otherwise) {
    const char* text = getenv(name);
    return text ? atoi(text) : otherwise;
}

int devices() { return number("DIFFNR_STAND_IN_DEVICES", 5); }

bool within(const std::map<uintptr_t, size_t>& blocks, uintptr_t from, size_t bytes) {
    auto block = blocks.upper_bound(from);
    if (block == blocks.begin()) return false;
    --block;
    return from - block->first <= block->second && bytes <= block->second - (from - block->first);
}

Result put(void* handle, NodeType type, std::function<Result()> work) {
    auto stream = world().streams.find(handle);
    if (stream == world().streams.end()) return INVALID_HANDLE;
    if (stream->second->capture) {
        stream->second->capture->nodes.push_back({type, std::move(work)});
        return SUCCESS;
    }
    stream->second->tasks.push_back({std::move(work), {}, 0});
    for (auto& each : world().streams) each.second->go_on();
    return SUCCESS;
}

void* own(void* handle) {
    world().owners[handle] = current;
    return handle;
}

}  // namespace

// Every call begins so.
#define CALL                                              \
    World& w = world();                                   \
    std::lock_guard<std::mutex> guard(w.mutex);           \
    if (!w.begun) return NOT_INITIALIZED
#define IN_CONTEXT \
    CALL;          \
    if (current < 0) return INVALID_CONTEXT

// The functions of the executor's library that kernels are run by.
EXPORT void diffnr_stand_in_begin(Launch launch, ArgumentBytes argument_bytes) {
    std::lock_guard<std::mutex> guard(world().mutex);
    world().launch = launch;
    world().argument_bytes = argument_bytes;
}

// What of a device was not given back.
EXPORT int diffnr_stand_in_alive(int device) {
    World& w = world();
    std::lock_guard<std::mutex> guard(w.mutex);
    int alive = w.contexts[device];
    for (auto& owner : w.owners) alive += owner.second == device;
    return alive;
}

// See graphs_wrong.
EXPORT void diffnr_stand_in_spoil_graphs(int device, int how) {
    std::lock_guard<std::mutex> guard(world().mutex);
    world().graphs_wrong[device] = how;
}

EXPORT int cuGetErrorString(int error, const char** text) {
    *text = error == OUT_OF_MEMORY ? "out of memory" : error == LAUNCH_FAILED ? "unspecified launch failure" : "refused";
    return SUCCESS;
}

EXPORT int cuGetErrorName(int error, const char** name) {
    static const std::map<int, const char*> names = {
        {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},     {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
        {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED"}, {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE"},
        {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"}, {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE"},
        {ALREADY_REGISTERED, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED"},
        {NOT_FOUND, "CUDA_ERROR_NOT_FOUND"},             {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED"},
        {NOT_PERMITTED, "CUDA_ERROR_NOT_PERMITTED"},     {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
    };
    auto found = names.find(error);
    *name = found == names.end() ? "CUDA_ERROR" : found->second;
    return SUCCESS;
}

EXPORT int cuDriverGetVersion(int* version) {
    *version = number("DIFFNR_STAND_IN_VERSION", 13000);
    return SUCCESS;
}

EXPORT int cuInit(unsigned) {
    if (devices() == 0) return NO_DEVICE;
    std::lock_guard<std::mutex> guard(world().mutex);
    world().begun = true;
    return SUCCESS;
}

EXPORT int cuDeviceGetCount(int* count) {
    CALL;
    *count = devices();
    return SUCCESS;
}

EXPORT int cuDeviceGet(int* device, int ordinal) {
    CALL;
    if (ordinal < 0 || ordinal >= devices()) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

EXPORT int cuDeviceGetName(char* name, int length, int device) {
    CALL;
    snprintf(name, size_t(length), "%s", DEVICES[device].name);
    return SUCCESS;
}

EXPORT int cuDeviceTotalMem_v2(size_t* bytes, int device) {
    CALL;
    *bytes = DEVICES[device].bytes;
    return SUCCESS;
}

EXPORT int cuDeviceGetAttribute(int* value, int attribute, int device) {
    CALL;
    // Compute capability, major and minor; shared memory of a block that asks for it.
    if (attribute == 75) *value = DEVICES[device].major;
    else if (attribute == 76) *value = DEVICES[device].minor;
    else if (attribute == 97) *value = 99 * 1024;
    else return INVALID_VALUE;
    return SUCCESS;
}

EXPORT int cuDevicePrimaryCtxRetain(void** context, int device) {
    CALL;
    w.contexts[device]++;
    *context = const_cast<Device*>(&DEVICES[device]);
    return SUCCESS;
}

EXPORT int cuDevicePrimaryCtxRelease_v2(int device) {
    CALL;
    if (w.contexts[device] == 0) return INVALID_CONTEXT;
    w.contexts[device]--;
    return SUCCESS;
}

EXPORT int cuCtxSetCurrent(void* context) {
    CALL;
    int device = int(static_cast<Device*>(context) - DEVICES);
    if (w.contexts[device] == 0) return INVALID_CONTEXT;
    current = device;
    return SUCCESS;
}

EXPORT int cuMemGetInfo_v2(size_t* free, size_t* total) {
    IN_CONTEXT;
    *total = DEVICES[current].bytes;
    *free = *total - w.used[current];
    return SUCCESS;
}

EXPORT int cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    IN_CONTEXT;
    if (bytes == 0) return INVALID_VALUE;
    if (bytes > DEVICES[current].bytes - w.used[current]) return OUT_OF_MEMORY;
    void* memory = aligned_alloc(256, (bytes + 255) / 256 * 256);
    // NaN as floats.
    memset(memory, 0xff, bytes);
    *address = reinterpret_cast<uintptr_t>(memory);
    w.device_memory[*address] = bytes;
    own(memory);
    w.used[current] += bytes;
    return SUCCESS;
}

EXPORT int cuMemFree_v2(uint64_t address) {
    IN_CONTEXT;
    auto block = w.device_memory.find(address);
    if (block == w.device_memory.end()) return INVALID_VALUE;
    void* memory = reinterpret_cast<void*>(address);
    w.used[w.owners[memory]] -= block->second;
    w.owners.erase(memory);
    w.device_memory.erase(block);
    free(memory);
    return SUCCESS;
}

EXPORT int cuMemHostAlloc(void** pointer, size_t bytes, unsigned) {
    IN_CONTEXT;
    *pointer = own(malloc(bytes));
    w.pinned_memory[reinterpret_cast<uintptr_t>(*pointer)] = bytes;
    return SUCCESS;
}

EXPORT int cuMemFreeHost(void* pointer) {
    IN_CONTEXT;
    if (w.pinned_memory.erase(reinterpret_cast<uintptr_t>(pointer)) == 0) return INVALID_VALUE;
    w.owners.erase(pointer);
    free(pointer);
    return SUCCESS;
}

// Registered memory is pinned memory that somebody else frees.
EXPORT int cuMemHostRegister_v2(void* pointer, size_t bytes, unsigned) {
    IN_CONTEXT;
    if (number("DIFFNR_STAND_IN_REGISTERS", 1) == 0) return OUT_OF_MEMORY;
    if (bytes == 0) return INVALID_VALUE;
    if (!w.pinned_memory.emplace(reinterpret_cast<uintptr_t>(pointer), bytes).second) return ALREADY_REGISTERED;
    own(pointer);
    return SUCCESS;
}

EXPORT int cuMemHostUnregister(void* pointer) {
    IN_CONTEXT;
    if (w.pinned_memory.erase(reinterpret_cast<uintptr_t>(pointer)) == 0) return NOT_REGISTERED;
    w.owners.erase(pointer);
    return SUCCESS;
}

EXPORT int cuModuleLoadData(void** module, const void* image) {
    IN_CONTEXT;
    const unsigned char magic[] = {0x50, 0xed, 0x55, 0xba};
    if (memcmp(image, magic, sizeof magic) != 0) return INVALID_IMAGE;
    *module = own(malloc(1));
    w.modules.insert(*module);
    return SUCCESS;
}

EXPORT int cuModuleUnload(void* module) {
    IN_CONTEXT;
    if (w.modules.erase(module) == 0) return INVALID_HANDLE;
    w.owners.erase(module);
    free(module);
    return SUCCESS;
}

EXPORT int cuModuleGetFunction(void** handle, void* module, const char* name) {
    IN_CONTEXT;
    if (w.modules.count(module) == 0) return INVALID_HANDLE;
    size_t bytes[32];
    int32_t count = w.argument_bytes ? w.argument_bytes(name, bytes, 32) : -1;
    if (count < 0) return NOT_FOUND;
    auto function = std::make_unique<Function>();
    function->name = name;
    function->argument_bytes.assign(bytes, bytes + count);
    *handle = function.get();
    w.functions[*handle] = std::move(function);
    return SUCCESS;
}

EXPORT int cuFuncLoad(void* function) {
    IN_CONTEXT;
    return w.functions.count(function) ? SUCCESS : INVALID_HANDLE;
}

EXPORT int cuFuncGetAttribute(int* value, int attribute, void* function) {
    IN_CONTEXT;
    if (w.functions.count(function) == 0) return INVALID_HANDLE;
    // Static shared memory.
    if (attribute != 1) return INVALID_VALUE;
    *value = 1024;
    return SUCCESS;
}

EXPORT int cuFuncSetAttribute(void* function, int attribute, int value) {
    IN_CONTEXT;
    auto found = w.functions.find(function);
    if (found == w.functions.end()) return INVALID_HANDLE;
    // Dynamic shared memory.
    if (attribute != 8 || value > 98 * 1024) return INVALID_VALUE;
    found->second->most_shared = value;
    return SUCCESS;
}

EXPORT int cuStreamCreate(void** handle, unsigned) {
    IN_CONTEXT;
    auto stream = std::make_shared<Stream>();
    stream->device = current;
    stream->eager = DEVICES[current].eager >> w.streams_made[current]++ % 3 & 1;
    *handle = own(stream.get());
    w.streams[*handle] = stream;
    return SUCCESS;
}

EXPORT int cuStreamDestroy_v2(void* handle) {
    IN_CONTEXT;
    auto stream = w.streams.find(handle);
    if (stream == w.streams.end()) return INVALID_HANDLE;
    stream->second->run_until(stream->second->asked());
    w.streams.erase(stream);
    w.owners.erase(handle);
    return SUCCESS;
}

EXPORT int cuStreamSynchronize(void* handle) {
    IN_CONTEXT;
    auto stream = w.streams.find(handle);
    if (stream == w.streams.end()) return INVALID_HANDLE;
    if (stream->second->capture) return CAPTURE_UNSUPPORTED;
    stream->second->run_until(stream->second->asked());
    return stream->second->failed;
}

EXPORT int cuStreamBeginCapture_v2(void* handle, int) {
    IN_CONTEXT;
    auto stream = w.streams.find(handle);
    if (stream == w.streams.end()) return INVALID_HANDLE;
    if (stream->second->capture) return CAPTURE_UNSUPPORTED;
    stream->second->capture = std::make_shared<Graph>(Graph{current, {}});
    return SUCCESS;
}

EXPORT int cuStreamEndCapture(void* handle, void** graph) {
    IN_CONTEXT;
    auto stream = w.streams.find(handle);
    if (stream == w.streams.end() || !stream->second->capture) return INVALID_HANDLE;
    std::shared_ptr<Graph> captured = std::move(stream->second->capture);
    stream->second->capture.reset();
    if (w.graphs_wrong[current] == 1) captured->nodes.push_back({TAKE_MEMORY, nullptr});
    *graph = own(captured.get());
    w.graphs[*graph] = captured;
    return SUCCESS;
}

EXPORT int cuGraphGetNodes(void* handle, void** nodes, size_t* count) {
    IN_CONTEXT;
    auto graph = w.graphs.find(handle);
    if (graph == w.graphs.end()) return INVALID_HANDLE;
    auto& all = graph->second->nodes;
    if (nodes == nullptr) *count = all.size();
    for (size_t i = 0; nodes != nullptr && i < *count; i++) nodes[i] = i < all.size() ? &all[i] : nullptr;
    return SUCCESS;
}

EXPORT int cuGraphNodeGetType(void* node, int* type) {
    IN_CONTEXT;
    if (node == nullptr) return INVALID_HANDLE;
    *type = static_cast<std::pair<int, std::function<Result()>>*>(node)->first;
    return SUCCESS;
}

EXPORT int cuGraphInstantiateWithFlags(void** executable, void* handle, unsigned long long) {
    IN_CONTEXT;
    auto graph = w.graphs.find(handle);
    if (graph == w.graphs.end()) return INVALID_HANDLE;
    if (w.graphs_wrong[current] == 2) return NOT_PERMITTED;
    auto made = std::make_shared<Graph>(*graph->second);
    *executable = own(made.get());
    w.executables[*executable] = made;
    return SUCCESS;
}

EXPORT int cuGraphUpload(void* executable, void* stream) {
    IN_CONTEXT;
    return w.executables.count(executable) && w.streams.count(stream) ? SUCCESS : INVALID_HANDLE;
}

EXPORT int cuGraphLaunch(void* executable, void* stream) {
    IN_CONTEXT;
    auto graph = w.executables.find(executable);
    if (graph == w.executables.end()) return INVALID_HANDLE;
    return put(stream, KERNEL, [graph = graph->second]() -> Result {
        for (auto& node : graph->nodes) {
            if (Result result = node.second(); result != SUCCESS) return result;
        }
        return SUCCESS;
    });
}

EXPORT int cuGraphExecDestroy(void* executable) {
    IN_CONTEXT;
    w.owners.erase(executable);
    return w.executables.erase(executable) ? SUCCESS : INVALID_HANDLE;
}

EXPORT int cuGraphDestroy(void* graph) {
    IN_CONTEXT;
    w.owners.erase(graph);
    return w.graphs.erase(graph) ? SUCCESS : INVALID_HANDLE;
}

EXPORT int cuEventCreate(void** handle, unsigned) {
    IN_CONTEXT;
    auto event = std::make_unique<Event>();
    *handle = own(event.get());
    w.events[*handle] = std::move(event);
    return SUCCESS;
}

EXPORT int cuEventDestroy_v2(void* handle) {
    IN_CONTEXT;
    w.owners.erase(handle);
    return w.events.erase(handle) ? SUCCESS : INVALID_HANDLE;
}

EXPORT int cuEventRecord(void* handle, void* in) {
    IN_CONTEXT;
    auto event = w.events.find(handle);
    auto stream = w.streams.find(in);
    if (event == w.events.end() || stream == w.streams.end()) return INVALID_HANDLE;
    if (stream->second->capture) return CAPTURE_UNSUPPORTED;
    *event->second = {stream->second, stream->second->asked()};
    return SUCCESS;
}

EXPORT int cuEventSynchronize(void* handle) {
    IN_CONTEXT;
    auto event = w.events.find(handle);
    if (event == w.events.end()) return INVALID_HANDLE;
    std::shared_ptr<Stream> stream = event->second->stream.lock();
    if (!stream) return SUCCESS;
    stream->run_until(event->second->work);
    return stream->failed;
}

EXPORT int cuStreamWaitEvent(void* handle, void* of, unsigned) {
    IN_CONTEXT;
    auto event = w.events.find(of);
    auto stream = w.streams.find(handle);
    if (event == w.events.end() || stream == w.streams.end()) return INVALID_HANDLE;
    if (stream->second->capture) return CAPTURE_UNSUPPORTED;
    stream->second->tasks.push_back({nullptr, event->second->stream, event->second->work});
    stream->second->go_on();
    return SUCCESS;
}

EXPORT int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    IN_CONTEXT;
    if (!within(w.device_memory, to, bytes) || !within(w.pinned_memory, reinterpret_cast<uintptr_t>(from), bytes))
        return INVALID_VALUE;
    return put(stream, COPY, [=] { return memcpy(reinterpret_cast<void*>(to), from, bytes), SUCCESS; });
}

EXPORT int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    IN_CONTEXT;
    if (!within(w.device_memory, from, bytes) || !within(w.pinned_memory, reinterpret_cast<uintptr_t>(to), bytes))
        return INVALID_VALUE;
    return put(stream, COPY, [=] { return memcpy(to, reinterpret_cast<void*>(from), bytes), SUCCESS; });
}

EXPORT int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) {
    IN_CONTEXT;
    if (!within(w.device_memory, to, bytes) || !within(w.device_memory, from, bytes)) return INVALID_VALUE;
    return put(stream, COPY, [=] {
        return memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes), SUCCESS;
    });
}

EXPORT int cuMemsetD32Async(uint64_t to, uint32_t pattern, size_t words, void* stream) {
    IN_CONTEXT;
    if (to % 4 != 0 || !within(w.device_memory, to, 4 * words)) return INVALID_VALUE;
    return put(stream, FILL, [=] {
        for (size_t i = 0; i < words; i++) reinterpret_cast<uint32_t*>(to)[i] = pattern;
        return SUCCESS;
    });
}

EXPORT int cuLaunchKernel(void* handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                          unsigned block_z, unsigned shared_bytes, void* stream, void** arguments, void**) {
    IN_CONTEXT;
    auto found = w.functions.find(handle);
    if (found == w.functions.end()) return INVALID_HANDLE;
    const Function* function = found->second.get();
    if (int(shared_bytes) > function->most_shared) return INVALID_VALUE;
    // The arguments are the caller's only until this returns.
    struct alignas(16) Value {
        unsigned char bytes[256];
    };
    auto values = std::make_shared<std::vector<Value>>(function->argument_bytes.size());
    for (size_t i = 0; i < values->size(); i++) {
        if (function->argument_bytes[i] > sizeof(Value)) return INVALID_VALUE;
        memcpy((*values)[i].bytes, arguments[i], function->argument_bytes[i]);
    }
    const Device* device = &DEVICES[current];
    const char* left_out = getenv("DIFFNR_STAND_IN_LEAVES_OUT");
    if (left_out && function->name == left_out) return SUCCESS;
    return put(stream, KERNEL, [=]() -> Result {
        std::vector<void*> pointers;
        for (Value& value : *values) pointers.push_back(value.bytes);
        const uint32_t grid[] = {grid_x, grid_y, grid_z}, block[] = {block_x, block_y, block_z};
        char reason[256] = "";
        int32_t code = world().launch(function->name.c_str(), grid, block, shared_bytes, pointers.data(),
                                      function->argument_bytes.data(), pointers.size(), device->workers, device->descending,
                                      reason, sizeof reason);
        if (code == 0) return SUCCESS;
        fprintf(stderr, "stand-in for libcuda: kernel %s: %s\n", function->name.c_str(), reason);
        return LAUNCH_FAILED;
    });
}
