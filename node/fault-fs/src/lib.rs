//! RocksDB on a disk that fails on demand, for tests: its own `FaultInjectionTestFS`, extended in `shim.cc`.
//!
//! ```text
//!   let fs = FaultFs::new();
//!   store opened with fs.env() ── fs.fail_after(Fault::PowerOff, 40) ──▶ every operation fails from the 41st on
//!   store dropped ── fs.lose_power(Unsynced::Torn { seed }) ──▶ the files are what a machine finds that starts again
//! ```
//!
//! The files are real ones, in the directory in which the store is opened. Bytes reach them only by a sync: so a store
//! that is copied or opened by someone else while it is open looks as if the power had gone. The `LOG` file of RocksDB and
//! whatever is done without it, such as renaming directories, is out of reach.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    fmt,
};

use rocksdb::Env;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing can be done any more; [`FaultFs::lose_power`] is what follows.
    PowerOff,
    /// Creating files and writing to them fails, for want of space; syncing, renaming and deleting go on.
    NoSpace,
    /// Creating files, writing and syncing fail.
    Writes,
    /// Syncing files and directories fails, and what they were to sync stays unsynced.
    Syncs,
}

/// What the disk still has of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsynced {
    /// Nothing: neither bytes nor new names.
    Lost,
    /// Of every file a random prefix, of some logs followed by zeros; of new names all or none.
    Torn {
        /// Decides it.
        seed: u32,
    },
}

/// What a loss of power took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Loss {
    /// Files that had unsynced bytes.
    pub files: u64,
    /// Bytes that are gone.
    pub lost_bytes: u64,
    /// Files that kept some of their unsynced bytes, and lost some.
    pub torn_files: u64,
}

/// A file system; stores that use it keep it alive.
pub struct FaultFs {
    handle: *mut c_void,
}

// SAFETY: the shim holds a lock in every call; the handle itself changes only when it is freed.
unsafe impl Send for FaultFs {}
// SAFETY: as above.
unsafe impl Sync for FaultFs {}

unsafe extern "C" {
    fn dynamo_fault_fs_new() -> *mut c_void;
    fn dynamo_fault_fs_free(handle: *mut c_void);
    fn dynamo_fault_fs_env(handle: *mut c_void) -> *mut c_void;
    fn dynamo_fault_fs_fail(handle: *mut c_void, fault: c_int);
    fn dynamo_fault_fs_fail_after(handle: *mut c_void, fault: c_int, operations: i64);
    fn dynamo_fault_fs_failing(handle: *mut c_void) -> c_int;
    fn dynamo_fault_fs_operations(handle: *mut c_void) -> u64;
    fn dynamo_fault_fs_lose_power(
        handle: *mut c_void,
        tear: bool,
        seed: u32,
        loss: *mut Loss,
        message: *mut c_char,
        length: usize,
    ) -> c_int;
}

/// Room for a message of RocksDB.
const MESSAGE_BYTES: usize = 512;
/// No fault.
const NONE: c_int = 0;

impl FaultFs {
    /// A file system that does what it is asked.
    pub fn new() -> Self {
        // SAFETY: takes nothing; `drop` frees what it returns.
        let handle = unsafe { dynamo_fault_fs_new() };
        Self { handle }
    }

    /// For the options of a store.
    pub fn env(&self) -> Env {
        // SAFETY: the shim returns an env with the layout of RocksDB's own, on the heap, which nobody else owns; it keeps
        // the file system alive by itself.
        unsafe { Env::from_raw(dynamo_fault_fs_env(self.handle).cast::<librocksdb_sys::rocksdb_env_t>()) }
    }

    /// From now on.
    pub fn fail(&self, fault: Fault) {
        // SAFETY: the handle is valid until `drop`.
        unsafe { dynamo_fault_fs_fail(self.handle, fault.code()) }
    }

    /// Once so many operations that change something have begun (files created, written, synced, renamed, deleted;
    /// directories synced), with the next one. Replaces an earlier plan.
    pub fn fail_after(&self, fault: Fault, operations: u32) {
        // SAFETY: the handle is valid until `drop`.
        unsafe { dynamo_fault_fs_fail_after(self.handle, fault.code(), i64::from(operations)) }
    }

    /// Ends every fault, planned ones too.
    pub fn heal(&self) {
        // SAFETY: the handle is valid until `drop`.
        unsafe { dynamo_fault_fs_fail(self.handle, NONE) }
    }

    /// Whether a fault has begun.
    pub fn is_failing(&self) -> bool {
        // SAFETY: the handle is valid until `drop`.
        unsafe { dynamo_fault_fs_failing(self.handle) != NONE }
    }

    /// Operations that changed something, or were to, so far.
    pub fn operations(&self) -> u64 {
        // SAFETY: the handle is valid until `drop`.
        unsafe { dynamo_fault_fs_operations(self.handle) }
    }

    /// Makes the files what they are after a loss of power, and ends every fault. Only after [`Fault::PowerOff`] and after
    /// the stores have been dropped.
    ///
    /// # Panics
    /// If the file system is still on, or files cannot be changed.
    pub fn lose_power(&self, unsynced: Unsynced) -> Loss {
        // SAFETY: the handle is valid until `drop`.
        let failing = unsafe { dynamo_fault_fs_failing(self.handle) };
        assert_eq!(failing, Fault::PowerOff.code(), "the power is on");
        let (tear, seed) = match unsynced {
            Unsynced::Lost => (false, 1),
            Unsynced::Torn { seed } => (true, seed),
        };
        let mut loss = Loss::default();
        let mut message = [0; MESSAGE_BYTES];
        // SAFETY: the pointers are to places that live longer than the call, of the length that is given.
        let failed = unsafe {
            let message = message.as_mut_ptr();
            dynamo_fault_fs_lose_power(self.handle, tear, seed, &raw mut loss, message, MESSAGE_BYTES)
        };
        if failed != 0 {
            // SAFETY: the shim ended the message with a zero.
            let message = unsafe { CStr::from_ptr(message.as_ptr()) };
            panic!("losing the power: {}", message.to_string_lossy());
        }
        loss
    }
}

impl Default for FaultFs {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for FaultFs {
    fn drop(&mut self) {
        // SAFETY: nobody uses the handle after this; envs hold the file system itself.
        unsafe { dynamo_fault_fs_free(self.handle) }
    }
}

impl fmt::Debug for FaultFs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultFs")
            .field("operations", &self.operations())
            .field("failing", &self.is_failing())
            .finish_non_exhaustive()
    }
}

impl Fault {
    /// As in `shim.cc`.
    fn code(self) -> c_int {
        match self {
            Self::PowerOff => 1,
            Self::NoSpace => 2,
            Self::Writes => 3,
            Self::Syncs => 4,
        }
    }
}
