"""Other people's readings of the same files and figures; called by tests/peers.rs, which compares them with ours.

usage: peers.py nibabel-read FILE            affine, shape and some voxels as JSON
       peers.py nibabel-write FOLDER         files with features that our writer never writes, and what nibabel says of them
       peers.py numpy-scene FOLDER           a scene folder as the field writes it: NumPy and JSON alone
       peers.py scikit-image A.npy B.npy     PSNR and SSIM of two volumes in [0, 1]
       peers.py surface A.npy B.npy SX SY SZ Dice and ASD of two masks through SciPy
       peers.py curation FOLDER              what PyTorch's users read of a folder of pairs, by NumPy and safetensors alone
       peers.py rtk-read GEOMETRY.xml        matrices and source positions as RTK has them
       peers.py rtk-write GEOMETRY.xml       a geometry with every parameter set, written by RTK
Exits with 77 where a package is missing.
"""

import json
import sys


def need(*names):
    import importlib

    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        print(error.name or names[0])
        sys.exit(77)


def describe(image):
    import numpy as np

    values = np.asarray(image.dataobj, dtype=np.float64)
    picks = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [n - 1 for n in values.shape]]
    return {
        "affine": image.affine.tolist(),
        "shape": list(values.shape),
        "picks": [[*at, float(values[tuple(at)])] for at in picks],
        "sum": float(values.sum()),
    }


def nibabel_read(path):
    (nib,) = need("nibabel")
    return describe(nib.load(path))


def nibabel_write(folder):
    nib, np = need("nibabel", "numpy")
    rng = np.random.default_rng(7)
    values = rng.integers(-1000, 2000, size=(5, 6, 7))
    c, s = np.cos(0.4), np.sin(0.4)
    turned = np.array([[c * 0.7, -s * 0.9, 0, -30], [s * 0.7, c * 0.9, 0, 11], [0, 0, -2.5, 400], [0, 0, 0, 1.0]])
    files = {}

    def save(name, image):
        path = f"{folder}/{name}"
        nib.save(image, path)
        files[name] = describe(nib.load(path))

    scaled = nib.Nifti1Image(values.astype(np.float64) * 0.3 - 7, turned)
    scaled.set_data_dtype(np.int16)
    save("scaled_int16.nii.gz", scaled)
    qform = nib.Nifti1Image(values.astype(np.int16), None)
    qform.set_qform(turned, code=1)
    qform.set_sform(None, code=0)
    save("qform_only.nii", qform)
    big = nib.Nifti1Image(values.astype(">f4"), turned, header=nib.Nifti1Header(endianness=">"))
    save("big_endian.nii", big)
    both = nib.Nifti1Image((values % 256).astype(np.uint8), turned)
    both.set_qform(np.diag([1.0, 1, 1, 1]), code=1)
    both.set_sform(turned, code=2)
    save("sform_wins.nii.gz", both)
    save("float64.nii.gz", nib.Nifti1Image(values / 3.0, np.diag([-1.0, -2, 3, 1])))
    return files


def numpy_scene(folder):
    (np,) = need("numpy")
    import os

    x, y, z = np.meshgrid(np.arange(4), np.arange(5), np.arange(6), indexing="ij")
    np.save(f"{folder}/vol_gt.npy", ((100 * x + 10 * y + z) / 1000).astype(np.float32))
    lists = {}
    for name, count in (("proj_train", 3), ("proj_test", 2)):
        os.makedirs(f"{folder}/{name}")
        lists[name] = []
        for view in range(count):
            v, u = np.meshgrid(np.arange(7), np.arange(8), indexing="ij")
            np.save(f"{folder}/{name}/{name}_{view:04d}.npy", (100 * view + 10 * v + u).astype(np.float32))
            lists[name].append({"file_path": f"{name}/{name}_{view:04d}.npy", "angle": float(np.linspace(0, 2 * np.pi, count)[view])})
    scanner = {
        "mode": "cone", "filter": None, "DSD": 7.0, "DSO": 5.0, "nDetector": [7, 8], "sDetector": [3.5, 4.0],
        "nVoxel": [4, 5, 6], "sVoxel": [2.0, 2.0, 2.0], "offOrigin": [0, 0, 0], "offDetector": [0, 0], "accuracy": 0.5,
        "totalAngle": 360.0, "startAngle": 0.0, "noise": True, "possion_noise": 1e4, "gaussian_noise": [0, 10],
    }  # fmt: skip
    meta = {"scanner": scanner, "vol": "vol_gt.npy", "radius": 1.0, "bbox": [[-1.0] * 3, [1.0] * 3], **lists}
    with open(f"{folder}/meta_data.json", "w") as file:
        json.dump(meta, file, indent=4)
    return {"views": 3}


def scikit_image(a, b):
    np, metrics = need("numpy", "skimage.metrics")
    a, b = (np.load(path).astype(np.float64) for path in (a, b))
    axes = []
    for axis in range(3):
        slices = [
            metrics.structural_similarity(
                x, y, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
            )
            for x, y in zip(np.moveaxis(a, axis, 0), np.moveaxis(b, axis, 0))
            if y.max() > 0
        ]
        axes.append(np.mean(slices))
    return {
        "psnr_db": float(metrics.peak_signal_noise_ratio(b, a, data_range=1.0)),
        "ssim": float(np.mean(axes)),
    }


def surface(a, b, *spacing):
    np, ndimage = need("numpy", "scipy.ndimage")
    a, b = (np.load(path) > 0.5 for path in (a, b))
    spacing = [float(value) for value in spacing]
    edge = [mask & ~ndimage.binary_erosion(mask) for mask in (a, b)]
    away = [ndimage.distance_transform_edt(~mask, sampling=spacing) for mask in edge]
    return {
        "dice": float(2 * (a & b).sum() / (a.sum() + b.sum())),
        "asd_mm": float(0.5 * (away[1][edge[0]].mean() + away[0][edge[1]].mean())),
    }


def curation(folder):
    np, safetensors = need("numpy", "safetensors")
    with open(f"{folder}/curation.json") as file:
        listed = json.load(file)
    references = {subject["name"]: subject["reference"] for subject in listed["subjects"]}
    shards = []
    for shard in listed["shards"]:
        with safetensors.safe_open(f"{folder}/{references[shard['subject']]}", "numpy") as file:
            reference = file.get_tensor("reference_hu").astype(np.float64)
        with safetensors.safe_open(f"{folder}/{shard['path']}", "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}
            metadata = file.metadata()
        z = np.arange(len(reference))[:, None, None]
        first, end = arrays["inside_z"]
        inside = (z >= first) & (z < end)
        error = ((arrays["degraded_hu"].astype(np.float64) - reference)[inside] ** 2).mean()
        shards.append(
            {
                "arrays": {name: [str(array.dtype), list(array.shape)] for name, array in arrays.items()},
                "psnr_db": float(10 * np.log10(2000.0**2 / error)),
                "claimed_psnr_db": float(metadata["psnr_db"]),
                "same_inside": bool(((arrays["inside"] == 1) == inside.any(axis=0)).all()),
                "views": len(arrays["views_rad"]) == int(metadata["views"]),
                "geometry": json.loads(metadata["geometry"])["source_to_isocenter_mm"],
            }
        )
    return shards


def rtk():
    (itk,) = need("itk")
    if not hasattr(itk, "RTK"):
        print("itk-rtk")
        sys.exit(77)
    return itk, itk.RTK


def rtk_describe(itk, geometry, views):
    return [
        {
            "matrix": itk.array_from_matrix(geometry.GetMatrix(view)).ravel().tolist(),
            "source": list(geometry.GetSourcePosition(view))[:3],
        }
        for view in range(views)
    ]


def rtk_read(path):
    itk, rtk_module = rtk()
    geometry = rtk_module.read_geometry(path)
    return rtk_describe(itk, geometry, len(geometry.GetGantryAngles()))


def rtk_write(path):
    itk, rtk_module = rtk()
    geometry = rtk_module.ThreeDCircularProjectionGeometry.New()
    for n in range(5):
        # sid, sdd, gantry, projection offsets, out of plane, in plane, source offsets
        geometry.AddProjection(
            900.0 + 3 * n, 1500.0 - 7 * n, 13.0 + 71 * n, 4.0 * n, -7.0 + n, 5.0 - 3 * n, 11.0 * n - 20, 2.0 - n, -3.0 + 2 * n
        )
    writer = rtk_module.ThreeDCircularProjectionGeometryXMLFileWriter.New()
    writer.SetFilename(path)
    writer.SetObject(geometry)
    writer.WriteFile()
    return rtk_describe(itk, geometry, 5)


if __name__ == "__main__":
    command = sys.argv[1].replace("-", "_")
    print(json.dumps(globals()[command](*sys.argv[2:])))
