#include "graft/nn/point_recorder.h"

namespace graft::nn {

namespace {

thread_local PointRecorder* current_recorder = nullptr;

}  // namespace

PointRecorder* PointRecorder::current() { return current_recorder; }

RecordingScope::RecordingScope(PointRecorder& recorder) : previous_(current_recorder) {
  current_recorder = &recorder;
}

RecordingScope::~RecordingScope() { current_recorder = previous_; }

}  // namespace graft::nn
