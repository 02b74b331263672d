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
use super::slices::Layout;
use super::watchdog::{Ender, Watchdog};
use super::{RepairError, raw};

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
        self.planes.iter().map(|plane| self.voxels[plane.axes()[0]]).sum()
    }

    /// Bytes that a model of this manifest binds ([`SliceFixer::buffer_bytes`]) once it is loaded.
    #[must_use]
    pub fn buffer_bytes(&self, manifest: &Manifest) -> usize {
        let planes = self.planes.iter().map(|plane| layout(*plane, self, manifest));
        bound_bytes(manifest, planes.map(|(_, layout, batch)| (layout, batch)))
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

/// Buffers of one plane, bound to the repairing session.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) plane: Plane,
    pub(super) layout: Layout,
    /// Slices of a run.
    pub(super) batch: usize,
    /// `[batch][channel][row][column]`, window units.
    slices: Tensor<f32>,
    index: Tensor<i64>,
    height: Tensor<f32>,
    /// `[batch][1][row][column]`.
    repaired: Tensor<f32>,
    binding: IoBinding,
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
    bound: Vec<Bound>,
}

impl SliceFixer {
    /// Loads a model: the folder with its `manifest.toml`, that file, or the repair graph beside it.
    ///
    /// # Errors
    /// Any [`RepairError`] of class stop.
    pub fn load(model: &Path, options: &Options) -> Result<Self, RepairError> {
        options.check()?;
        let manifest = Manifest::read(model)?;
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
        let layouts: Vec<(Plane, Layout, usize)> =
            options.planes.iter().map(|plane| layout(*plane, options, &manifest)).collect();
        let setting = Setting {
            model_sha256: manifest.repair.sha256,
            cache_folder: options.cache_folder.as_deref(),
            profiles: Some(profiles(&layouts)),
            channels: manifest.channels(),
            context: manifest.context,
        };
        let (repairer, providers) =
            through_the_chain(&library, threads, options.demand, &manifest.repair.path, &repair, &setting)?;
        manifest.repair.check(&repairer)?;
        tracing::info!(
            model = manifest.name,
            onnxruntime = library.version,
            providers = providers.log_text(),
            "SliceFixer loaded"
        );
        let failed = |error: ort::Error| RepairError::run(&error);
        Self::bind(manifest, library, (options, threads), (conditioner, repairer, providers), &layouts).map_err(failed)
    }

    fn bind(
        manifest: Manifest,
        onnxruntime: Library,
        (options, threads): (&Options, usize),
        (conditioner, repairer, providers): (Session, Session, Providers),
        layouts: &[(Plane, Layout, usize)],
    ) -> ort::Result<Self> {
        let [rows, columns] = manifest.projection;
        let [tokens, width] = manifest.context;
        let allocator = Allocator::default();
        let projections = Tensor::from_array(([1, 2, rows, columns], vec![0.0_f32; 2 * rows * columns]))?;
        let anatomy = Tensor::from_array(([1_usize], vec![0_i64]))?;
        let mut context = Tensor::<f32>::new(&allocator, [1, tokens, width])?;
        context.extract_tensor_mut().1.fill(0.0);
        let mut conditioner_binding = conditioner.create_binding()?;
        conditioner_binding.bind_input("projections", &projections)?;
        conditioner_binding.bind_input("anatomy", &anatomy)?;
        conditioner_binding.bind_output("context", &mut context)?;
        let channels = manifest.channels();
        let bound = layouts
            .iter()
            .map(|&(plane, layout, batch)| {
                let [rows, columns] = layout.padded;
                let index = manifest.planes.iter().position(|known| *known == plane).unwrap_or(0) as i64;
                let slices = vec![0.0_f32; batch * channels * rows * columns];
                let mut repaired = Tensor::<f32>::new(&allocator, [batch, 1, rows, columns])?;
                let mut binding = repairer.create_binding()?;
                binding.bind_output("repaired", &mut repaired)?;
                let bound = Bound {
                    plane,
                    layout,
                    batch,
                    slices: Tensor::from_array(([batch, channels, rows, columns], slices))?,
                    index: Tensor::from_array(([batch], vec![index; batch]))?,
                    height: Tensor::from_array(([batch], vec![0.5_f32; batch]))?,
                    repaired,
                    binding,
                };
                Ok(bound)
            })
            .collect::<ort::Result<Vec<Bound>>>()?;
        let mut fixer = Self {
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
            bound,
        };
        for place in 0..fixer.bound.len() {
            fixer.bind_inputs(place)?;
        }
        Ok(fixer)
    }

    /// Binds a plane's inputs. On the CPU the session reads our buffers themselves from then on; another device gets a copy at each call.
    fn bind_inputs(&mut self, place: usize) -> ort::Result<()> {
        let bound = &mut self.bound[place];
        bound.binding.bind_input("slices", &bound.slices)?;
        bound.binding.bind_input("context", &self.context)?;
        bound.binding.bind_input("plane", &bound.index)?;
        bound.binding.bind_input("height", &bound.height)?;
        Ok(())
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
        self.bound.iter().map(|bound| bound.plane)
    }

    /// Slices of all planes: what a whole repair runs.
    #[must_use]
    pub fn slices(&self) -> usize {
        self.bound.iter().map(|bound| bound.layout.size[0]).sum()
    }

    /// Bytes of the buffers that are bound to the sessions; what ONNX Runtime takes for itself comes on top.
    #[must_use]
    pub fn buffer_bytes(&self) -> usize {
        bound_bytes(&self.manifest, self.bound.iter().map(|bound| (bound.layout, bound.batch)))
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
    pub fn warm_up(&mut self) -> Result<WarmUp, RepairError> {
        let begin = Instant::now();
        let mut last = Duration::ZERO;
        let mut slices = 0;
        for place in 0..self.bound.len() {
            // The same whatever was run before.
            self.bound[place].height.extract_tensor_mut().1.fill(0.5);
            for run in 0..WARM_UP_RUNS {
                let begin = Instant::now();
                self.run(place)?;
                if run + 1 == WARM_UP_RUNS {
                    last += begin.elapsed();
                    slices += self.bound[place].batch;
                }
            }
        }
        Ok(WarmUp { whole: begin.elapsed(), slice: last / slices.max(1) as u32 })
    }

    pub(super) fn bound(&self) -> &[Bound] {
        &self.bound
    }

    /// Repairs the slices of a plane from `first` on, as many as its batch holds; gives `[slice][row][column]`, padded.
    pub(super) fn repair_batch(
        &mut self,
        place: usize,
        first: usize,
        volumes: &[(&[f32], [f64; 2])],
    ) -> Result<&[f32], RepairError> {
        let neighbours = self.manifest.neighbours;
        let bound = &mut self.bound[place];
        let layout = bound.layout;
        layout.gather(volumes, first, neighbours, bound.slices.extract_tensor_mut().1);
        for (n, height) in bound.height.extract_tensor_mut().1.iter_mut().enumerate() {
            *height = layout.height((first + n).min(layout.size[0] - 1));
        }
        self.run(place)?;
        Ok(self.bound[place].repaired.extract_tensor().1)
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

    fn run(&mut self, place: usize) -> Result<(), RepairError> {
        let failed = |error: ort::Error| RepairError::run(&error);
        if self.providers.copies_inputs() {
            self.bind_inputs(place).map_err(failed)?;
        }
        let binding = &self.bound[place].binding;
        raw::run(&mut self.repairer, binding, self.watchdog.options()).map_err(|reason| RepairError::Run { reason })?;
        binding.synchronize_outputs().map_err(failed)
    }
}

/// Bytes of the buffers that are bound to the sessions: slices and repaired slices of each plane's batch, projections, context.
fn bound_bytes(manifest: &Manifest, planes: impl Iterator<Item = (Layout, usize)>) -> usize {
    let images = |(layout, batch): (Layout, usize)| {
        let pixels = layout.padded[0] * layout.padded[1];
        batch * (pixels * (manifest.channels() + 1) * 4 + 12)
    };
    let [rows, columns] = manifest.projection;
    let [tokens, width] = manifest.context;
    planes.map(images).sum::<usize>() + 4 * (2 * rows * columns + tokens * width) + 8
}

/// What a warm-up took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WarmUp {
    /// All of it.
    pub whole: Duration,
    /// One slice, mean over the last run of each plane.
    pub slice: Duration,
}

/// The slices of a plane are divided evenly into as few runs as `batch` allows.
fn layout(plane: Plane, options: &Options, manifest: &Manifest) -> (Plane, Layout, usize) {
    let layout = Layout::of(plane, options.voxels, manifest.multiple);
    let runs = layout.size[0].div_ceil(options.batch);
    (plane, layout, layout.size[0].div_ceil(runs))
}

/// Smallest, usual (the first plane's) and largest shapes.
fn profiles(layouts: &[(Plane, Layout, usize)]) -> [[usize; 3]; 3] {
    let shape = |(_, layout, batch): &(Plane, Layout, usize)| [*batch, layout.padded[0], layout.padded[1]];
    let mut profiles = [layouts.first().map_or([1; 3], shape); 3];
    for shape in layouts.iter().map(shape) {
        for (axis, size) in shape.into_iter().enumerate() {
            profiles[0][axis] = profiles[0][axis].min(size);
            profiles[2][axis] = profiles[2][axis].max(size);
        }
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
