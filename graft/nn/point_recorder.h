// Named points of a forward pass, for tests that compare a model with another implementation at
// each step. Costs one thread-local load per point when no recorder is set.
#pragma once

#include <string>
#include <string_view>

#include <ATen/ATen.h>

namespace graft::nn {

class PointRecorder {
 public:
  virtual ~PointRecorder() = default;
  virtual void record(const std::string& name, const at::Tensor& value) = 0;

  // The recorder of this thread, or null.
  static PointRecorder* current();
};

// Sets the recorder of this thread for its lifetime.
class RecordingScope {
 public:
  explicit RecordingScope(PointRecorder& recorder);
  ~RecordingScope();
  RecordingScope(const RecordingScope&) = delete;
  RecordingScope& operator=(const RecordingScope&) = delete;

 private:
  PointRecorder* previous_;
};

// Records `value` under `prefix` + `name` where a recorder is set.
inline void record_point(std::string_view prefix, std::string_view name, const at::Tensor& value) {
  if (PointRecorder* recorder = PointRecorder::current()) [[unlikely]] {
    recorder->record(std::string(prefix).append(name), value);
  }
}

}  // namespace graft::nn
