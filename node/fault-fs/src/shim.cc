// Two file systems on top of the real one:
//
//   RocksDB -> FaultFS: counts operations, lets chosen ones fail, remembers what is not synced
//           -> FaultInjectionTestFS (RocksDB's own): holds unsynced bytes in memory, and unsynced directory entries
//           -> the default file system
//
// FaultInjectionTestFS alone loses every unsynced byte or none: its random drop cuts a copy that nobody writes out. A
// torn tail is therefore written by FaultFS.

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "env/composite_env_wrapper.h"
#include "rocksdb/env.h"
#include "rocksdb/file_system.h"
#include "rocksdb/system_clock.h"
#include "util/random.h"
#include "utilities/fault_injection_fs.h"

using namespace ROCKSDB_NAMESPACE;

namespace {

// As in lib.rs.
enum Fault : int {
  kNone = 0,
  kPowerOff = 1,
  kNoSpace = 2,
  kWrites = 3,
  kSyncs = 4,
};

enum class Operation { kCreate, kWrite, kSync, kMetadata };

// What of a file no sync covers.
struct Tail {
  uint64_t synced = 0;
  std::string unsynced;
};

struct Loss {
  uint64_t files;
  uint64_t lost_bytes;
  uint64_t torn_files;
};

class FaultFS : public FileSystemWrapper {
 public:
  explicit FaultFS(const std::shared_ptr<FaultInjectionTestFS>& inner)
      : FileSystemWrapper(inner), inner_(inner) {}

  const char* Name() const override { return "DynamoFaultFS"; }

  void Fail(Fault fault) {
    std::lock_guard<std::mutex> lock(mutex_);
    countdown_ = -1;
    Begin(fault);
  }

  void FailAfter(Fault fault, int64_t operations) {
    std::lock_guard<std::mutex> lock(mutex_);
    pending_ = fault;
    countdown_ = operations;
  }

  Fault Failing() {
    std::lock_guard<std::mutex> lock(mutex_);
    return failing_;
  }

  uint64_t Operations() {
    std::lock_guard<std::mutex> lock(mutex_);
    return operations_;
  }

  IOStatus LosePower(bool tear, uint32_t seed, Loss* loss);

  // Called before an operation; an error is what the operation has to return.
  IOStatus Step(Operation operation);

  void Created(const std::string& name) {
    std::lock_guard<std::mutex> lock(mutex_);
    tails_[name] = Tail();
  }
  void Appended(const std::string& name, const Slice& data) {
    std::lock_guard<std::mutex> lock(mutex_);
    tails_[name].unsynced.append(data.data(), data.size());
  }
  void Synced(const std::string& name) {
    std::lock_guard<std::mutex> lock(mutex_);
    Tail& tail = tails_[name];
    tail.synced += tail.unsynced.size();
    tail.unsynced.clear();
  }
  void Truncated(const std::string& name, uint64_t size) {
    std::lock_guard<std::mutex> lock(mutex_);
    Tail& tail = tails_[name];
    if (size <= tail.synced) {
      tail = Tail{size, ""};
    } else {
      tail.unsynced.resize(size - tail.synced);
    }
  }

  IOStatus NewWritableFile(const std::string& name, const FileOptions& options,
                           std::unique_ptr<FSWritableFile>* result,
                           IODebugContext* dbg) override;
  IOStatus ReopenWritableFile(const std::string& name,
                              const FileOptions& options,
                              std::unique_ptr<FSWritableFile>* result,
                              IODebugContext* dbg) override;
  IOStatus ReuseWritableFile(const std::string& name, const std::string& old,
                             const FileOptions& options,
                             std::unique_ptr<FSWritableFile>* result,
                             IODebugContext* dbg) override;
  IOStatus NewDirectory(const std::string& name, const IOOptions& options,
                        std::unique_ptr<FSDirectory>* result,
                        IODebugContext* dbg) override;
  IOStatus SyncFile(const std::string& name, const FileOptions& file_options,
                    const IOOptions& options, bool use_fsync,
                    IODebugContext* dbg) override;
  IOStatus DeleteFile(const std::string& name, const IOOptions& options,
                      IODebugContext* dbg) override;
  IOStatus RenameFile(const std::string& from, const std::string& to,
                      const IOOptions& options, IODebugContext* dbg) override;
  IOStatus GetFreeSpace(const std::string& path, const IOOptions& options,
                        uint64_t* free, IODebugContext* dbg) override;

 private:
  // With the lock.
  void Begin(Fault fault) {
    failing_ = fault;
    if (fault == kPowerOff) {
      inner_->SetFilesystemActive(false, IOStatus::IOError("the power is off"));
    } else {
      inner_->SetFilesystemActive(true);
    }
  }

  std::shared_ptr<FaultInjectionTestFS> inner_;
  std::mutex mutex_;
  Fault failing_ = kNone;
  Fault pending_ = kNone;
  int64_t countdown_ = -1;
  uint64_t operations_ = 0;
  std::map<std::string, Tail> tails_;
};

class FaultFile : public FSWritableFileOwnerWrapper {
 public:
  FaultFile(std::unique_ptr<FSWritableFile>&& file, FaultFS* fs,
            std::string name)
      : FSWritableFileOwnerWrapper(std::move(file)),
        fs_(fs),
        name_(std::move(name)) {}

  IOStatus Append(const Slice& data, const IOOptions& options,
                  IODebugContext* dbg) override {
    IOStatus status = fs_->Step(Operation::kWrite);
    if (status.ok()) {
      status = target()->Append(data, options, dbg);
    }
    if (status.ok()) {
      fs_->Appended(name_, data);
    }
    return status;
  }
  IOStatus Append(const Slice& data, const IOOptions& options,
                  const DataVerificationInfo& info,
                  IODebugContext* dbg) override {
    IOStatus status = fs_->Step(Operation::kWrite);
    if (status.ok()) {
      status = target()->Append(data, options, info, dbg);
    }
    if (status.ok()) {
      fs_->Appended(name_, data);
    }
    return status;
  }
  IOStatus Truncate(uint64_t size, const IOOptions& options,
                    IODebugContext* dbg) override {
    IOStatus status = target()->Truncate(size, options, dbg);
    if (status.ok()) {
      fs_->Truncated(name_, size);
    }
    return status;
  }
  IOStatus Sync(const IOOptions& options, IODebugContext* dbg) override {
    IOStatus status = fs_->Step(Operation::kSync);
    if (status.ok()) {
      status = target()->Sync(options, dbg);
    }
    if (status.ok()) {
      fs_->Synced(name_);
    }
    return status;
  }
  IOStatus Fsync(const IOOptions& options, IODebugContext* dbg) override {
    return Sync(options, dbg);
  }
  // Only asks the kernel to begin: promises nothing.
  IOStatus RangeSync(uint64_t, uint64_t, const IOOptions&,
                     IODebugContext*) override {
    return IOStatus::OK();
  }

 private:
  FaultFS* fs_;
  std::string name_;
};

class FaultDirectory : public FSDirectoryWrapper {
 public:
  FaultDirectory(std::unique_ptr<FSDirectory>&& directory, FaultFS* fs)
      : FSDirectoryWrapper(std::move(directory)), fs_(fs) {}

  IOStatus Fsync(const IOOptions& options, IODebugContext* dbg) override {
    IOStatus status = fs_->Step(Operation::kSync);
    return status.ok() ? FSDirectoryWrapper::Fsync(options, dbg) : status;
  }
  IOStatus FsyncWithDirOptions(const IOOptions& options, IODebugContext* dbg,
                               const DirFsyncOptions& how) override {
    IOStatus status = fs_->Step(Operation::kSync);
    return status.ok()
               ? FSDirectoryWrapper::FsyncWithDirOptions(options, dbg, how)
               : status;
  }

 private:
  FaultFS* fs_;
};

IOStatus FaultFS::Step(Operation operation) {
  std::lock_guard<std::mutex> lock(mutex_);
  ++operations_;
  if (countdown_ >= 0 && countdown_-- == 0) {
    Begin(pending_);
  }
  switch (failing_) {
    case kPowerOff:
      return IOStatus::IOError("the power is off");
    case kNoSpace:
      if (operation == Operation::kCreate || operation == Operation::kWrite) {
        return IOStatus::NoSpace("no space left on the device, as told");
      }
      break;
    case kWrites:
      if (operation != Operation::kMetadata) {
        return IOStatus::IOError("writing failed, as told");
      }
      break;
    case kSyncs:
      if (operation == Operation::kSync) {
        return IOStatus::IOError("syncing failed, as told");
      }
      break;
    case kNone:
      break;
  }
  return IOStatus::OK();
}

IOStatus FaultFS::NewWritableFile(const std::string& name,
                                  const FileOptions& options,
                                  std::unique_ptr<FSWritableFile>* result,
                                  IODebugContext* dbg) {
  IOStatus status = Step(Operation::kCreate);
  if (status.ok()) {
    status = FileSystemWrapper::NewWritableFile(name, options, result, dbg);
  }
  if (status.ok()) {
    Created(name);
    result->reset(new FaultFile(std::move(*result), this, name));
  }
  return status;
}

// RocksDB writes to a file once, as it is set up here; a second life of a file would need its length.
IOStatus FaultFS::ReopenWritableFile(const std::string& name,
                                     const FileOptions&,
                                     std::unique_ptr<FSWritableFile>*,
                                     IODebugContext*) {
  return IOStatus::NotSupported("reopening to write", name);
}

IOStatus FaultFS::ReuseWritableFile(const std::string& name, const std::string&,
                                    const FileOptions&,
                                    std::unique_ptr<FSWritableFile>*,
                                    IODebugContext*) {
  return IOStatus::NotSupported("recycling", name);
}

IOStatus FaultFS::NewDirectory(const std::string& name,
                               const IOOptions& options,
                               std::unique_ptr<FSDirectory>* result,
                               IODebugContext* dbg) {
  IOStatus status = FileSystemWrapper::NewDirectory(name, options, result, dbg);
  if (status.ok()) {
    result->reset(new FaultDirectory(std::move(*result), this));
  }
  return status;
}

IOStatus FaultFS::SyncFile(const std::string& name,
                           const FileOptions& file_options,
                           const IOOptions& options, bool use_fsync,
                           IODebugContext* dbg) {
  IOStatus status = Step(Operation::kSync);
  if (status.ok()) {
    status = FileSystemWrapper::SyncFile(name, file_options, options, use_fsync,
                                         dbg);
  }
  return status;
}

IOStatus FaultFS::DeleteFile(const std::string& name, const IOOptions& options,
                             IODebugContext* dbg) {
  IOStatus status = Step(Operation::kMetadata);
  if (status.ok()) {
    status = FileSystemWrapper::DeleteFile(name, options, dbg);
  }
  if (status.ok()) {
    std::lock_guard<std::mutex> lock(mutex_);
    tails_.erase(name);
  }
  return status;
}

IOStatus FaultFS::RenameFile(const std::string& from, const std::string& to,
                             const IOOptions& options, IODebugContext* dbg) {
  IOStatus status = Step(Operation::kMetadata);
  if (status.ok()) {
    status = FileSystemWrapper::RenameFile(from, to, options, dbg);
  }
  if (status.ok()) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = tails_.find(from);
    if (found == tails_.end()) {
      tails_.erase(to);
    } else {
      tails_[to] = std::move(found->second);
      tails_.erase(from);
    }
  }
  return status;
}

IOStatus FaultFS::GetFreeSpace(const std::string& path,
                               const IOOptions& options, uint64_t* free,
                               IODebugContext* dbg) {
  if (Failing() == kNoSpace) {
    *free = 0;
    return IOStatus::OK();
  }
  return FileSystemWrapper::GetFreeSpace(path, options, free, dbg);
}

// Writes what survived of a file's unsynced bytes behind those that were synced.
IOStatus Restore(FileSystem* disk, const std::string& name, const Slice& kept) {
  std::unique_ptr<FSWritableFile> file;
  IOStatus status = disk->ReopenWritableFile(name, FileOptions(), &file, nullptr);
  if (status.ok()) {
    status = file->Append(kept, IOOptions(), nullptr);
  }
  if (status.ok()) {
    status = file->Close(IOOptions(), nullptr);
  }
  return status;
}

bool IsLog(const std::string& name) { return name.ends_with(".log"); }

IOStatus FaultFS::LosePower(bool tear, uint32_t seed, Loss* loss) {
  std::lock_guard<std::mutex> lock(mutex_);
  Random random(seed);
  *loss = Loss{0, 0, 0};
  countdown_ = -1;
  Begin(kNone);
  IOStatus status = inner_->DropUnsyncedFileData();
  // A directory entry may have reached the disk without having been asked to.
  bool entries_survive = tear && random.OneIn(2);
  if (status.ok() && !entries_survive) {
    status = inner_->DeleteFilesCreatedAfterLastDirSync(IOOptions(), nullptr);
  }
  inner_->ResetState();
  const std::shared_ptr<FileSystem>& disk = FileSystem::Default();
  for (const auto& [name, tail] : tails_) {
    const std::string& unsynced = tail.unsynced;
    uint64_t size = 0;
    if (!status.ok()) {
      break;
    }
    if (unsynced.empty()) {
      continue;
    }
    ++loss->files;
    if (!disk->FileExists(name, IOOptions(), nullptr).ok()) {
      loss->lost_bytes += unsynced.size();
      continue;
    }
    status = disk->GetFileSize(name, IOOptions(), &size, nullptr);
    if (status.ok() && size != tail.synced) {
      status = IOStatus::Aborted(name, "has " + std::to_string(size) + " bytes, synced " +
                                           std::to_string(tail.synced));
    }
    uint64_t keep = 0;
    std::string kept;
    if (tear) {
      keep = random.Uniform(static_cast<int>(unsynced.size()) + 1);
      kept = unsynced.substr(0, keep);
      // The length reached the disk, the bytes did not: they read as zeros. Only for logs: a manifest with such an end is
      // found damaged by RocksDB, and the usual file systems lengthen a file after its bytes are there.
      if (IsLog(name) && random.OneIn(4)) {
        kept.resize(unsynced.size());
      }
    }
    loss->lost_bytes += unsynced.size() - keep;
    loss->torn_files += keep > 0 && keep < unsynced.size() ? 1 : 0;
    if (status.ok() && !kept.empty()) {
      status = Restore(disk.get(), name, kept);
    }
  }
  tails_.clear();
  return status;
}

// After a failed flush RocksDB waits a second before anything else, its own closing too.
class ImpatientClock : public SystemClockWrapper {
 public:
  ImpatientClock() : SystemClockWrapper(SystemClock::Default()) {}
  const char* Name() const override { return "DynamoImpatientClock"; }
  void SleepForMicroseconds(int micros) override {
    SystemClockWrapper::SleepForMicroseconds(std::min(micros, 1000));
  }
};

struct Handle {
  std::shared_ptr<FaultFS> fs;
};

// As in RocksDB's db/c.cc, whose `rocksdb_env_destroy` frees it.
struct EnvHandle {
  Env* rep;
  bool is_default;
};

}  // namespace

extern "C" {

Handle* dynamo_fault_fs_new() {
  auto inner = std::make_shared<FaultInjectionTestFS>(FileSystem::Default());
  // Without it, nothing is ever held back.
  inner->SetInjectUnsyncedDataLoss(true);
  return new Handle{std::make_shared<FaultFS>(inner)};
}

void dynamo_fault_fs_free(Handle* handle) { delete handle; }

void* dynamo_fault_fs_env(Handle* handle) {
  auto clock = std::make_shared<ImpatientClock>();
  return new EnvHandle{
      new CompositeEnvWrapper(Env::Default(), handle->fs, clock), false};
}

void dynamo_fault_fs_fail(Handle* handle, int fault) {
  handle->fs->Fail(static_cast<Fault>(fault));
}

void dynamo_fault_fs_fail_after(Handle* handle, int fault, int64_t operations) {
  handle->fs->FailAfter(static_cast<Fault>(fault), operations);
}

int dynamo_fault_fs_failing(Handle* handle) { return handle->fs->Failing(); }

uint64_t dynamo_fault_fs_operations(Handle* handle) {
  return handle->fs->Operations();
}

// 0: done; else the message has been written to `message`, which has room for `length` bytes, with a zero.
int dynamo_fault_fs_lose_power(Handle* handle, bool tear, uint32_t seed,
                               Loss* loss, char* message, size_t length) {
  IOStatus status = handle->fs->LosePower(tear, seed, loss);
  if (status.ok()) {
    return 0;
  }
  std::string text = status.ToString();
  size_t size = std::min(text.size(), length - 1);
  std::copy_n(text.data(), size, message);
  message[size] = 0;
  return 1;
}
}
