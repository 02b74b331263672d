//! The model in memory: two sessions, buffers that are allocated once, warm-up.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ort::memory::Allocator;
use ort::session::builder::SessionBuilder;
use ort::session::{IoBinding, Session};
use ort::value::Tensor;

use super::conditioning::{self, Conditioning};
use super::library::{self, Library};
use super::manifest::{Manifest, Plane};
use super::providers::{self, Demand, Provider, Providers, Setting};
use super::runs::{self, Bound, Runs, SliceBuffers};
use super::watchdog::{Ender, Watchdog};
use super::{RepairError, raw};
use crate::compute::slices::{SliceBatch, SliceLayout, WindowUnits};
use crate::compute::{Address, Operations, Values};

/// Folder of models, in place of `models` beside the working directory and the executable.
pub const MODELS_VARIABLE: &str = "DIFFNR_MODELS";

/// Most slices that are run at once.
const MOST_BATCH: usize = 256;

/// Runs of each shape before a session counts as warm: the second may still take memory.
const WARM_UP_RUNS: usize = 3;

/// How a model is to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Voxels `[x, y, z]` of the volumes to come.
    pub voxels: [usize; 3],
    /// Planes to repair along; none: all that the model knows.
    pub planes: Vec<Plane>,
    /// Slices at once, at most: the slices of a plane are divided evenly. More is no faster on a CPU, and a deadline is looked at between
    /// batches.
    pub batch: usize,
    /// Threads of the CPU provider; 0: one for each processor.
    pub threads: usize,
    /// Who may run it.
    pub demand: Demand,
    /// TensorRT's engines are kept here; without, they are built at each start.
    pub cache_folder: Option<PathBuf>,
    /// ONNX Runtime's library or its folder (see [`library::load`]).
    pub onnxruntime: Option<PathBuf>,
}

impl Options {
    /// All planes that the model knows, four slices at once, all processors, any provider.
    #[must_use]
    pub fn new(voxels: [usize; 3]) -> Self {
        Self {
            voxels,
            planes: Vec::new(),
            batch: 4,
            threads: 0,
            demand: Demand::Any,
            cache_folder: None,
            onnxruntime: None,
        }
    }

    /// The same for a model: its planes, where none was chosen.
    ///
    /// # Errors
    /// [`RepairError::Input`] for a plane that the model does not know.
    pub fn of_model(&self, manifest: &Manifest) -> Result<Self, RepairError> {
        let mut options = self.clone();
        if options.planes.is_empty() {
            options.planes.clone_from(&manifest.planes);
        }
        for plane in &options.planes {
            manifest.plane_index(*plane)?;
        }
        Ok(options)
    }

    /// Slices of the planes chosen: what a whole repair runs.
    #[must_use]
    pub fn slices(&self) -> usize {
        self.planes.iter().map(|plane| self.voxels[plane.axis()]).sum()
    }

    /// Bytes that a model of this manifest is told by: projections, context, which slices; what it works on is in [`SliceBuffers`].
    #[must_use]
    pub fn told_bytes(&self, manifest: &Manifest) -> usize {
        told_bytes(manifest) + self.layouts(manifest).map(|(_, _, batch)| runs::told_bytes(batch)).sum::<usize>()
    }

    /// Each plane, how its slices lie, and how many are run at once: they are divided evenly into as few runs as `batch` allows.
    pub(super) fn layouts<'a>(
        &'a self,
        manifest: &Manifest,
    ) -> impl Iterator<Item = (Plane, SliceLayout, usize)> + use<'a> {
        let multiple = manifest.multiple;
        self.planes.iter().map(move |&plane| {
            let layout = SliceLayout::across(plane.axis(), self.voxels, multiple);
            let runs = layout.slices().div_ceil(self.batch);
            (plane, layout, layout.slices().div_ceil(runs))
        })
    }

    /// Refuses options that cannot work.
    ///
    /// # Errors
    /// [`RepairError::Input`] naming the field.
    pub fn check(&self) -> Result<(), RepairError> {
        if let Some(count) = self.voxels.into_iter().find(|count| !(1..=8192).contains(count)) {
            return Err(RepairError::input("voxels", count, "must be 1 to 8192 along each axis"));
        }
        let twice = (1..self.planes.len()).any(|place| self.planes[..place].contains(&self.planes[place]));
        if twice {
            let shown = format!("{:?}", self.planes);
            return Err(RepairError::input("planes", shown, "must name each at most once"));
        }
        if !(1..=MOST_BATCH).contains(&self.batch) {
            return Err(RepairError::input("batch", self.batch, "must be 1 to 256"));
        }
        if self.threads > 1024 {
            return Err(RepairError::input("threads", self.threads, "must be at most 1024"));
        }
        Ok(())
    }
}

/// A model that is ready to run. Buffers are allocated when it is loaded; runs allocate nothing of ours.
#[derive(Debug)]
pub struct SliceFixer {
    manifest: Manifest,
    onnxruntime: Library,
    providers: Providers,
    voxels: [usize; 3],
    threads: usize,
    conditioner: Session,
    conditioner_binding: IoBinding,
    projections: Tensor<f32>,
    anatomy: Tensor<i64>,
    context: Tensor<f32>,
    conditioned: bool,
    repairer: Session,
    watchdog: Watchdog,
    runs: Runs,
}

impl SliceFixer {
    /// Loads the model of a manifest, to work on buffers that were taken for it.
    ///
    /// # Errors
    /// Any [`RepairError`] of class stop.
    pub fn load(
        manifest: Manifest,
        options: &Options,
        compute: &dyn Operations,
        mut buffers: SliceBuffers,
    ) -> Result<Self, RepairError> {
        options.check()?;
        let options = &options.of_model(&manifest)?;
        let (condition, repair) = (manifest.condition.bytes()?, manifest.repair.bytes()?);
        let library = library::load(options.onnxruntime.as_deref())?;
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        // A few milliseconds, once a scan: not worth an engine.
        let conditioner = commit(&mut builder(&library, threads)?, &manifest.condition.path, &condition)?;
        manifest.condition.check(&conditioner)?;
        let setting = Setting {
            model_sha256: manifest.repair.sha256,
            cache_folder: options.cache_folder.as_deref(),
            profiles: Some(profiles(options, &manifest)),
            channels: manifest.channels(),
            context: manifest.context,
            device: match buffers.addresses(compute) {
                Some([Address::Cuda { device, .. }, _]) => device as i32,
                _ => 0,
            },
        };
        let (repairer, providers) =
            through_the_chain(&library, threads, options.demand, &manifest.repair.path, &repair, &setting)?;
        manifest.repair.check(&repairer)?;
        let failed = |error: ort::Error| RepairError::run(&error);
        let context = context(&manifest).map_err(failed)?;
        let runs = Runs::bind(compute, buffers, (&manifest, options), (&repairer, &providers), &context)?;
        tracing::info!(
            model = manifest.name,
            onnxruntime = library.version,
            providers = providers.log_text(),
            in_place = runs.in_place(),
            "SliceFixer loaded"
        );
        Self::told((manifest, context), library, (options, threads), conditioner, (repairer, providers, runs))
            .map_err(failed)
    }

    /// Binds what a scan is told by.
    fn told(
        (manifest, mut context): (Manifest, Tensor<f32>),
        onnxruntime: Library,
        (options, threads): (&Options, usize),
        conditioner: Session,
        (repairer, providers, runs): (Session, Providers, Runs),
    ) -> ort::Result<Self> {
        let [rows, columns] = manifest.projection;
        let projections = Tensor::from_array(([1, 2, rows, columns], vec![0.0_f32; 2 * rows * columns]))?;
        let anatomy = Tensor::from_array(([1_usize], vec![0_i64]))?;
        let mut conditioner_binding = conditioner.create_binding()?;
        conditioner_binding.bind_input("projections", &projections)?;
        conditioner_binding.bind_input("anatomy", &anatomy)?;
        conditioner_binding.bind_output("context", &mut context)?;
        Ok(Self {
            manifest,
            onnxruntime,
            providers,
            voxels: options.voxels,
            threads,
            conditioner,
            conditioner_binding,
            projections,
            anatomy,
            context,
            conditioned: false,
            repairer,
            watchdog: Watchdog::new()?,
            runs,
        })
    }

    /// What the model takes and gives.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What became of the execution providers.
    #[must_use]
    pub fn providers(&self) -> &Providers {
        &self.providers
    }

    /// ONNX Runtime's file and version.
    #[must_use]
    pub fn onnxruntime(&self) -> &Library {
        &self.onnxruntime
    }

    /// Voxels of the volumes that it repairs.
    #[must_use]
    pub fn voxels(&self) -> [usize; 3] {
        self.voxels
    }

    /// Threads of the CPU provider.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Planes that it repairs along.
    pub fn planes(&self) -> impl ExactSizeIterator<Item = Plane> + '_ {
        self.runs.bound.iter().map(|bound| bound.plane)
    }

    /// Slices of all planes: what a whole repair runs.
    #[must_use]
    pub fn slices(&self) -> usize {
        self.runs.bound.iter().map(|bound| bound.layout.slices()).sum()
    }

    /// Bytes of the buffers that are bound to the sessions; what ONNX Runtime takes for itself comes on top.
    #[must_use]
    pub fn buffer_bytes(&self) -> usize {
        self.runs.bytes() + told_bytes(&self.manifest)
    }

    /// Whether its runs work on the carrier's memory itself, not on copies on the host.
    #[must_use]
    pub fn in_place(&self) -> bool {
        self.runs.in_place()
    }

    /// The model's view of a scan, `[token][width]`; zero until [`SliceFixer::condition`] was called.
    #[must_use]
    pub fn context(&self) -> &[f32] {
        self.context.extract_tensor().1
    }

    /// Tells the model of a scan: once a scan, kept until the next.
    ///
    /// # Errors
    /// [`RepairError::Input`] for views that cannot be taken, [`RepairError::Run`].
    pub fn condition(&mut self, scan: &Conditioning<'_>) -> Result<(), RepairError> {
        self.conditioned = false;
        // What ended a repair before does not end this.
        self.allow_until(None)?;
        let size = self.manifest.projection;
        let (_, projections) = self.projections.extract_tensor_mut();
        for (view, out) in scan.views.iter().zip(projections.chunks_exact_mut(size[0] * size[1])) {
            conditioning::average_onto(view.view(), size, out)?;
        }
        self.anatomy.extract_tensor_mut().1[0] = self.manifest.anatomy_index(scan.anatomy) as i64;
        raw::run(&mut self.conditioner, &self.conditioner_binding, self.watchdog.options())
            .map_err(|reason| RepairError::Run { reason })?;
        if let Some(value) = self.context().iter().find(|value| !value.is_finite()) {
            return Err(RepairError::Run { reason: format!("the scan's context holds {value}") });
        }
        self.conditioned = true;
        Ok(())
    }

    /// Whether a scan's context is there.
    #[must_use]
    pub fn is_conditioned(&self) -> bool {
        self.conditioned
    }

    /// Forgets the scan; the next must be told by [`SliceFixer::condition`].
    pub fn forget(&mut self) {
        self.conditioned = false;
    }

    /// Runs every shape a few times, so that memory is taken and engines are there before "ready".
    ///
    /// # Errors
    /// [`RepairError::Run`].
    pub fn warm_up(&mut self, compute: &dyn Operations) -> Result<WarmUp, RepairError> {
        let begin = Instant::now();
        let mut last = Duration::ZERO;
        let mut slices = 0;
        for place in 0..self.runs.bound.len() {
            // The same whatever was run before.
            self.runs.heights(place).fill(0.5);
            for run in 0..WARM_UP_RUNS {
                let begin = Instant::now();
                self.run(compute, place)?;
                if run + 1 == WARM_UP_RUNS {
                    last += begin.elapsed();
                    slices += self.runs.bound[place].batch;
                }
            }
        }
        Ok(WarmUp { whole: begin.elapsed(), slice: last / slices.max(1) as u32 })
    }

    pub(super) fn bound(&self) -> &[Bound] {
        &self.runs.bound
    }

    /// Repairs the slices of a plane from `first` on, as many as its batch holds; gives `[slice][row][column]`, padded.
    pub(super) fn repair_batch(
        &mut self,
        compute: &dyn Operations,
        place: usize,
        first: usize,
        volumes: &[(Values<'_>, WindowUnits)],
    ) -> Result<Values<'_>, RepairError> {
        let layout = self.runs.bound[place].layout;
        for (volume, (values, units)) in volumes.iter().enumerate() {
            let batch = SliceBatch { first, neighbours: self.manifest.neighbours, volumes: volumes.len(), volume };
            compute.gather_slices(&layout, &batch, *units, *values, self.runs.slices(place))?;
        }
        for (n, height) in self.runs.heights(place).iter_mut().enumerate() {
            *height = layout.height((first + n).min(layout.slices() - 1));
        }
        self.run(compute, place)?;
        Ok(self.runs.repaired(place))
    }

    /// What ends a repair from another thread, where its [`super::Watch`] then says that it is to leave off.
    #[must_use]
    pub fn ender(&self) -> Ender {
        self.watchdog.ender()
    }

    /// Runs from now on are ended when the deadline passes; without one they last as long as they like.
    pub(super) fn allow_until(&self, deadline: Option<Instant>) -> Result<(), RepairError> {
        self.watchdog.arm(deadline).map_err(|error| RepairError::run(&error))
    }

    fn run(&mut self, compute: &dyn Operations, place: usize) -> Result<(), RepairError> {
        let (repairer, options) = (&mut self.repairer, self.watchdog.options());
        self.runs.run(compute, place, &self.context, |binding| raw::run(repairer, binding, options))
    }
}

/// Bytes of projections, anatomy and context.
fn told_bytes(manifest: &Manifest) -> usize {
    let [rows, columns] = manifest.projection;
    let [tokens, width] = manifest.context;
    4 * (2 * rows * columns + tokens * width) + 8
}

/// The context of a scan that nothing is known of.
fn context(manifest: &Manifest) -> ort::Result<Tensor<f32>> {
    let [tokens, width] = manifest.context;
    let mut context = Tensor::<f32>::new(&Allocator::default(), [1, tokens, width])?;
    context.extract_tensor_mut().1.fill(0.0);
    Ok(context)
}

/// What a warm-up took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WarmUp {
    /// All of it.
    pub whole: Duration,
    /// One slice, mean over the last run of each plane.
    pub slice: Duration,
}

/// Smallest, usual (the first plane's) and largest shapes.
fn profiles(options: &Options, manifest: &Manifest) -> [[usize; 3]; 3] {
    let shapes = || {
        let shape = |(_, layout, batch): (Plane, SliceLayout, usize)| [batch, layout.padded()[0], layout.padded()[1]];
        options.layouts(manifest).map(shape)
    };
    let mut profiles = [shapes().next().unwrap_or([1; 3]); 3];
    for (axis, size) in shapes().flat_map(|shape| shape.into_iter().enumerate()) {
        profiles[0][axis] = profiles[0][axis].min(size);
        profiles[2][axis] = profiles[2][axis].max(size);
    }
    profiles
}

/// Options of both sessions. One order of operations and a fixed number of threads; threads that wait do not burn the processor that
/// the reconstruction runs on.
fn builder(library: &Library, threads: usize) -> Result<SessionBuilder, RepairError> {
    let failed = |error: ort::Error<SessionBuilder>| RepairError::Run { reason: error.message().to_string() };
    Session::builder(library.environment())
        .map_err(|error| RepairError::run(&error))?
        .with_intra_threads(threads)
        .map_err(failed)?
        .with_inter_threads(1)
        .map_err(failed)?
        .with_parallel_execution(false)
        .map_err(failed)?
        .with_intra_op_spinning(false)
        .map_err(failed)?
        .with_deterministic_compute(true)
        .map_err(failed)?
        .with_config_entry(raw::OPTION, "1")
        .map_err(failed)
}

fn commit(builder: &mut SessionBuilder, path: &Path, bytes: &[u8]) -> Result<Session, RepairError> {
    builder
        .commit_from_memory(bytes)
        .map_err(|error| RepairError::Graph { path: path.to_path_buf(), reason: providers::one_line(error.message()) })
}

/// Makes the session with the first providers of the chain that take it.
pub(super) fn through_the_chain(
    library: &Library,
    threads: usize,
    demand: Demand,
    path: &Path,
    bytes: &[u8],
    setting: &Setting<'_>,
) -> Result<(Session, Providers), RepairError> {
    let mut chain: Vec<Provider> = match demand {
        Demand::Any => Provider::CHAIN.to_vec(),
        Demand::Only(provider) => vec![provider, Provider::Cpu],
    };
    let mut refused = Vec::new();
    loop {
        let mut providers = Providers { refused: std::mem::take(&mut refused), ..Providers::default() };
        let mut builder = builder(library, threads)?;
        for &provider in &chain {
            if providers.registered.contains(&provider) {
                continue;
            }
            match providers::register(provider, builder.clone(), library, setting) {
                Ok(with) => {
                    builder = with;
                    providers.registered.push(provider);
                }
                Err(reason) => providers.refused.push((provider, reason)),
            }
        }
        chain.clone_from(&providers.registered);
        if let Demand::Only(provider) = demand
            && let Some((_, reason)) = providers.refused.iter().find(|(refused, _)| *refused == provider)
        {
            return Err(RepairError::Demanded { provider, reason: reason.clone() });
        }
        match commit(&mut builder, path, bytes) {
            Ok(session) => {
                providers.read_back(&session)?;
                return match demand {
                    Demand::Only(provider) => match providers.missing(provider) {
                        Some(reason) => Err(RepairError::Demanded { provider, reason }),
                        None => Ok((session, providers)),
                    },
                    Demand::Any => Ok((session, providers)),
                };
            }
            // The graph may be more than the first of them can take.
            Err(error) if chain.len() > 1 => {
                providers.refused.push((chain.remove(0), error.to_string()));
                refused = providers.refused;
            }
            Err(error) => return Err(error),
        }
    }
}

/// The model that the distribution brings: the folder that [`MODELS_VARIABLE`] names, or `models` beside the working directory or the
/// executable, if it holds a `manifest.toml`.
///
/// # Errors
/// [`RepairError::ModelMissing`] with all places.
pub fn shipped() -> Result<PathBuf, RepairError> {
    let variable = std::env::var_os(MODELS_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
    let beside = std::env::current_exe().ok().and_then(|path| path.parent().map(Path::to_path_buf));
    let folders = match variable {
        Some(folder) => vec![folder],
        None => std::env::current_dir().ok().into_iter().chain(beside).map(|folder| folder.join("models")).collect(),
    };
    let found = folders.iter().find(|folder| folder.join("manifest.toml").is_file());
    found.cloned().ok_or_else(|| {
        let shown: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
        RepairError::ModelMissing { searched: format!("no manifest.toml in {}", shown.join(", ")) }
    })
}
