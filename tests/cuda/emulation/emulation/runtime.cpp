#include "emulation/runtime.hpp"

#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "emulation/device_memory.hpp"

namespace cuda_emulation {

thread_local int current_device = 0;

/// Work in order, run by whoever waits for it, one piece at a time.
struct Stream {
  const int device = current_device;
  std::mutex queue_mutex;
  std::condition_variable changed;
  bool running = false;
  std::deque<std::function<void()>> queue;
  std::size_t put = 0, done = 0;

  void push(std::function<void()> work) {
    std::lock_guard lock(queue_mutex);
    queue.push_back(std::move(work));
    ++put;
  }
  std::size_t last() {
    std::lock_guard lock(queue_mutex);
    return put;
  }
  /// Returns when `number` pieces of work are done, whoever did them. Two threads that drive
  /// streams which wait for each other both go on, since neither keeps a stream longer than a
  /// piece.
  void run_to(std::size_t number) {
    std::unique_lock lock(queue_mutex);
    while (done < number && (running || !queue.empty())) {
      if (running)
        changed.wait(lock);
      else
        run_next(lock);
    }
  }

 private:
  void run_next(std::unique_lock<std::mutex>& lock) {
    struct Turn {
      Stream& stream;
      std::unique_lock<std::mutex>& lock;
      ~Turn() {
        lock.lock();
        stream.running = false;
        ++stream.done;
        stream.changed.notify_all();
      }
    };
    const auto work = std::move(queue.front());
    queue.pop_front();
    running = true;
    lock.unlock();
    const Turn turn{*this, lock};
    const DeviceMemory::Open open(device_memory());
    work();
  }
};

struct Event {
  Stream* stream = nullptr;
  std::size_t number = 0;
};

namespace {

std::mutex registry_mutex;
std::vector<Stream*> streams;
std::vector<std::unique_ptr<Stream>> ended_streams;  // of which events may still be asked
std::map<const void*, int> shared_limit;             // of kernels
std::map<const char*, std::size_t> pinned;           // begin, bytes
constexpr std::size_t plain_shared = 48 << 10, most_shared = 227 << 10;

Stream& stream_of(cudaStream_t stream) {
  static Stream plain;
  return stream == nullptr ? plain : *stream;
}

bool is_pinned(const void* at) {
  std::lock_guard lock(registry_mutex);
  auto next = pinned.upper_bound(static_cast<const char*>(at));
  if (next == pinned.begin()) return false;
  --next;
  return static_cast<const char*>(at) < next->first + next->second;
}

}  // namespace

bool on_device(const void* at) { return device_memory().contains(at); }
std::size_t device_bytes() { return device_memory().bytes(); }

void enqueue(cudaStream_t stream, std::function<void()> work) {
  stream_of(stream).push(std::move(work));
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel,
                   std::function<void()> body) {
  std::size_t limit = plain_shared;
  {
    std::lock_guard lock(registry_mutex);
    if (const auto found = shared_limit.find(kernel); found != shared_limit.end())
      limit = std::size_t(found->second);
  }
  if (config.dynamicSmemBytes > limit) return cudaErrorInvalidValue;
  const auto index = [](dim3 d) { return Index3{d.x, d.y, d.z}; };
  const Grid grid{index(config.gridDim), index(config.blockDim), config.dynamicSmemBytes};
  stream_of(config.stream).push([grid, body = std::move(body)] { run_grid(grid, body); });
  return cudaSuccess;
}

}  // namespace cuda_emulation

using namespace cuda_emulation;

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorNotReady:
      return "device not ready";
  }
  return "unknown error";
}
cudaError_t cudaGetLastError() { return cudaSuccess; }

// Several devices, so that ranks may hold one each; there is no difference between them.
static bool is_device(int device) { return device >= 0 && device < 4; }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 4;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (!is_device(device)) return cudaErrorInvalidValue;
  current_device = device;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (!is_device(device)) return cudaErrorInvalidValue;
  *properties = {"emulated", 9, 0, 3, 1 << 20, most_shared, DeviceMemory::most_bytes};
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *total = DeviceMemory::most_bytes;
  *free = *total - device_bytes();
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  std::vector<Stream*> all;
  {
    std::lock_guard lock(registry_mutex);
    for (Stream* stream : streams)
      if (stream->device == current_device) all.push_back(stream);
  }
  all.push_back(&stream_of(nullptr));
  for (Stream* stream : all) stream->run_to(stream->last());
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** at, std::size_t bytes) {
  *at = device_memory().allocate(bytes);
  return *at == nullptr && bytes > 0 ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaFree(void* at) {
  cudaDeviceSynchronize();
  if (at != nullptr) device_memory().free(at);
  return cudaSuccess;
}
cudaError_t cudaMallocAsync(void** at, std::size_t bytes, cudaStream_t) {
  return cudaMalloc(at, bytes);
}
cudaError_t cudaFreeAsync(void* at, cudaStream_t stream) {
  if (at != nullptr) stream_of(stream).push([at] { device_memory().free(at); });
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** at, std::size_t bytes, unsigned) {
  *at = std::malloc(bytes);
  if (*at == nullptr) return cudaErrorMemoryAllocation;
  poison(*at, bytes);
  std::lock_guard lock(registry_mutex);
  pinned[static_cast<const char*>(*at)] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* at) {
  cudaDeviceSynchronize();
  std::lock_guard lock(registry_mutex);
  pinned.erase(static_cast<const char*>(at));
  std::free(at);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  const bool to_device = on_device(to), from_device = on_device(from);
  if (kind != cudaMemcpyDefault &&
      (to_device != (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) ||
       from_device != (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice)))
    return cudaErrorInvalidValue;
  if (to_device) device_memory().check(to, bytes);
  if (from_device) device_memory().check(from, bytes);
  Stream& queue = stream_of(stream);
  if (!from_device && !is_pinned(from)) {  // pageable memory is read before the call returns
    std::vector<char> copy(static_cast<const char*>(from), static_cast<const char*>(from) + bytes);
    queue.push([to, copy = std::move(copy)] { std::memcpy(to, copy.data(), copy.size()); });
  } else {
    queue.push([=] { std::memcpy(to, from, bytes); });
  }
  if (!to_device && !is_pinned(to)) queue.run_to(queue.last());  // and written before
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* at, int value, std::size_t bytes, cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  if (!on_device(at)) return cudaErrorInvalidValue;
  device_memory().check(at, bytes);
  stream_of(stream).push([=] { std::memset(at, value, bytes); });
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new Stream;
  std::lock_guard lock(registry_mutex);
  streams.push_back(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  stream->run_to(stream->last());
  std::lock_guard lock(registry_mutex);
  std::erase(streams, stream);
  ended_streams.emplace_back(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  Stream& queue = stream_of(stream);
  queue.run_to(queue.last());
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (event->stream != nullptr)
    stream_of(stream).push([on = event->stream, number = event->number] { on->run_to(number); });
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new Event;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  event->stream = &stream_of(stream);
  event->number = event->stream->last();
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (event->stream != nullptr) event->stream->run_to(event->number);
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (event->stream == nullptr) return cudaSuccess;
  std::lock_guard lock(event->stream->queue_mutex);
  return event->stream->done >= event->number ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  if (value < 0 || std::size_t(value) > most_shared) return cudaErrorInvalidValue;
  std::lock_guard lock(registry_mutex);
  shared_limit[kernel] = value;
  return cudaSuccess;
}
