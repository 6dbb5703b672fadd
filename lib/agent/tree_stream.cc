#include "agent/tree_stream.h"

namespace catnap::agent {
namespace {

constexpr size_t kJoinBytes = 32 << 10;

}  // namespace

absl::StatusOr<std::shared_ptr<TreeStream>> TreeStream::Open(
    Client* client, Kind kind, const FileRequest& request,
    const CallLimits& limits) {
  auto stream = std::make_shared<TreeStream>(client);
  auto id = client->Open(kind, Encode(request), stream, limits);
  if (!id.ok()) return id.status();
  base::MutexLock lock(&stream->mutex_);
  stream->stream_ = *id;
  return stream;
}

bool TreeStream::Write(std::span<const uint8_t> data, bool end) {
  const uint32_t stream = id();
  do {
    {
      base::MutexLock lock(&mutex_);
      if (end_.has_value()) return false;
      writable_ = false;
    }
    const size_t taken = client_->Write(stream, kMainChannel, data, end);
    data = data.subspan(taken);
    if (data.empty()) return true;
    base::MutexLock lock(&mutex_);
    while (!writable_ && !end_.has_value()) changed_.Wait(&mutex_);
  } while (true);
}

Encoded TreeStream::Read() {
  Encoded bytes;
  {
    base::MutexLock lock(&mutex_);
    while (received_.empty() && !end_.has_value()) changed_.Wait(&mutex_);
    if (received_.empty()) return bytes;
    bytes = std::move(received_.front());
    received_.pop_front();
  }
  client_->Consume(id(), kMainChannel, bytes.size());
  return bytes;
}

absl::Status TreeStream::Wait() {
  base::MutexLock lock(&mutex_);
  while (!end_.has_value()) changed_.Wait(&mutex_);
  return *end_;
}

size_t TreeStream::OnData(uint8_t channel, std::span<const uint8_t> data,
                          bool /*end*/) {
  if (channel != kMainChannel || data.empty()) return data.size();
  base::MutexLock lock(&mutex_);
  // Joined, or a guest that sends single bytes makes each cost a hundred.
  if (received_.empty() || received_.back().size() >= kJoinBytes) {
    received_.emplace_back();
  }
  received_.back().insert(received_.back().end(), data.begin(), data.end());
  changed_.NotifyAll();
  return 0;
}

void TreeStream::OnWritable() {
  base::MutexLock lock(&mutex_);
  writable_ = true;
  changed_.NotifyAll();
}

void TreeStream::OnEnd(absl::StatusOr<Encoded> result) {
  FileResult file;
  absl::Status status = result.status();
  if (status.ok() && !Decode(*result, &file)) {
    status = absl::UnavailableError("guest agent: malformed answer");
  }
  if (status.ok()) status = FileStatusOf(file);
  base::MutexLock lock(&mutex_);
  end_ = std::move(status);
  changed_.NotifyAll();
}

}  // namespace catnap::agent
