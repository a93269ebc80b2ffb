//! Opens the engine: reads the store back, rewrites its file if that is worth it, starts the threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use super::backup::Backups;
use super::bodies::Bodies;
use super::counts::Counts;
use super::disk::{Disk, Trees};
use super::keeper::{self, Tasks};
use super::lanes::Lanes;
use super::log::Log;
use super::marker::{self, Marker};
use super::pack::Packer;
use super::pen::Pen;
use super::readers::{self, Pages};
use super::shared::Shared;
use super::writer::Writer;
use super::{Embedded, compact, recovery};
use crate::engine::{Capabilities, Durability, EngineSettings, Health, OpenError, OpenProgress};
use crate::types::clock::unix_now;

/// sled's own cache. With it, its fixed cost and the bodies, the engine's memory is about 130 MB and the budget.
const SLED_CACHE_BYTES: u64 = 64 << 20;
/// A body cache below this could not hold what is read ahead.
const MIN_BODY_CACHE_BYTES: u64 = 4 << 20;

impl Embedded {
    /// Opens the store in the data directory, or makes one, and reads back what is there. Blocks; says how far it
    /// is when that takes long.
    ///
    /// # Errors
    /// [`OpenError`] when another process has the store, it is damaged or newer, or the directory cannot be used.
    pub fn open(settings: EngineSettings) -> Result<Self, OpenError> {
        Self::open_telling(settings, &OpenProgress::default())
    }

    /// The same, telling `progress` how far it is.
    ///
    /// # Errors
    /// As [`Embedded::open`].
    pub fn open_telling(settings: EngineSettings, progress: &OpenProgress) -> Result<Self, OpenError> {
        let bodies = Bodies::new(
            usize::try_from(settings.body_cache_bytes.max(MIN_BODY_CACHE_BYTES)).unwrap_or(usize::MAX),
        );
        let open = || Disk::open(&settings.data_dir, SLED_CACHE_BYTES, settings.ballast_bytes);
        let mut disk = open()?;
        let mut recovered = recovery::recover(&disk, &bodies, progress)?;
        if let Some(row_bytes) = compact::is_due(&disk, &recovered, &settings) {
            drop(recovered);
            match compact::at_start(disk, row_bytes, &settings) {
                Ok(report) => tracing::info!(
                    before_bytes = report.before_bytes,
                    after_bytes = report.after_bytes,
                    "rewrote the store's file, of which little was in use"
                ),
                Err(error) => tracing::warn!(%error, "cannot rewrite the store's file"),
            }
            disk = open()?;
            recovered = recovery::recover(&disk, &bodies, progress)?;
        }
        let unusable = |what: String| OpenError::Unusable { path: settings.data_dir.clone(), what };
        let Begun { boot, secret, tokens } = begin(&disk).map_err(|e| unusable(e.to_string()))?;
        let journaled = settings.durability == Durability::Fsync;
        let log = Log::open(&disk, journaled).map_err(|e| unusable(e.to_string()))?;
        disk.sync().map_err(|e| unusable(e.to_string()))?;
        Marker { boot, closed: false }.write(&settings.data_dir).map_err(|e| unusable(e.to_string()))?;
        if let Err(error) = disk.put_ballast() {
            tracing::warn!(%error, "cannot reserve the ballast: settlements may fail on a full disk");
        }
        let shared = Arc::new(Shared {
            capabilities: Capabilities { name: "embedded", durability: settings.durability },
            settings,
            boot,
            hash_secret: secret,
            token_secret: tokens,
            disk,
            bodies,
            registry: RwLock::new(recovered.registry),
            lanes: Lanes::default(),
            tasks: Tasks::default(),
            pages: Pages::default(),
            counts: Counts::default(),
            health: watch::Sender::new(Health::Ok),
            failed: AtomicBool::new(false),
            next_target: AtomicU32::new(recovered.next_target),
            next_consumer: AtomicU64::new(1),
            stored: Mutex::new(recovered.stored),
        });
        for target in shared.registry.read().all() {
            let mut state = target.state.lock();
            shared.tasks.register(&target, &mut state, unix_now());
        }
        let mut writer = Writer::new(
            shared.clone(),
            recovered.ledger,
            Packer::new(boot, recovered.next_pack, log),
            recovered.retained,
            recovered.next_retained,
            recovered.dedup,
        );
        writer.dirty_sequences.extend(recovered.dirty_sequences);
        for (target, entry) in recovered.replaced {
            keeper::settle_replaced(&shared, &target, &[entry]);
        }
        let pen = Arc::new(Pen::new(writer));
        let (writing, writer) = (shared.clone(), pen.clone());
        let (timer, reader) = (shared.clone(), shared.clone());
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.to_owned()).spawn(run).map_err(|e| OpenError::Unusable {
                path: shared.settings.data_dir.clone(),
                what: format!("no thread could be started: {e}"),
            })
        };
        let mut threads = vec![
            spawn("store-writer", Box::new(move || writer.run(&writing)))?,
            spawn("store-timer", Box::new(move || keeper::keep_time(&timer)))?,
            spawn("store-reader", Box::new(move || keeper::read_back(&reader)))?,
        ];
        for n in 0..readers::PAGE_THREADS {
            let reader = shared.clone();
            threads.push(spawn(&format!("store-pages-{n}"), Box::new(move || readers::read_pages(&reader)))?);
        }
        Ok(Self { shared, pen, threads: Mutex::new(threads), backups: Backups::default() })
    }
}

/// The row of the secret of tokens, where it is not that of the store.
pub(super) const TOKENS: &str = "tokens";

/// What a start has.
struct Begun {
    boot: u64,
    /// Of hashes that are stored.
    secret: [u8; 16],
    /// Of tokens in the hands of peers.
    tokens: [u8; 16],
}

/// Counts this start and finds or makes the store's secrets.
fn begin(disk: &Disk) -> sled::Result<Begun> {
    let meta = &disk.trees.meta;
    let boot = marker::meta_number(&disk.trees, "boot")? + 1;
    meta.insert("boot", &boot.to_be_bytes())?;
    let secret = secret(&disk.trees)?;
    let tokens = meta.get(TOKENS)?.as_deref().and_then(<[u8]>::first_chunk).copied();
    Ok(Begun { boot, secret, tokens: tokens.unwrap_or(secret) })
}

/// The store's secret, which is made when there is none.
pub(super) fn secret(trees: &Trees) -> sled::Result<[u8; 16]> {
    if let Some(secret) = found_secret(trees)? {
        return Ok(secret);
    }
    let secret = random();
    trees.meta.insert("secret", &secret)?;
    Ok(secret)
}

/// The same, if there is one.
pub(super) fn found_secret(trees: &Trees) -> sled::Result<Option<[u8; 16]>> {
    Ok(trees.meta.get("secret")?.as_deref().and_then(<[u8]>::first_chunk).copied())
}

/// 128 random bits, of the 80 that each of two new ids has.
pub(super) fn random() -> [u8; 16] {
    let half = || u128::from(ulid::Ulid::generate().random() as u64);
    (half() << 64 | half()).to_be_bytes()
}
