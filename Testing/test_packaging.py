"""The extension's package: every file listed, the catalogue's entry, the icons."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
# Those of a build or an editor, not of the sources.
_NOT_SOURCES = {"__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"}

# slicer-extension-catalog-entry-schema-v1.0.2.json: every key that an entry may have, its type.
CATALOGUE = {
    "$schema": str,
    "build_dependencies": list,
    "build_subdirectory": str,
    "category": str,
    "dicom_support_rule": str,
    "enabled": bool,
    "scm_revision": str,
    "scm_type": str,
    "scm_url": str,
    "tier": int,
}
NEEDED = {"$schema", "category", "scm_url"}


def calls(file: Path) -> list[tuple[str, list[str]]]:
    """Each command of a CMake file with its arguments; variables are replaced."""
    text = re.sub(r"^\s*#.*$", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    variables: dict[str, str] = {}
    found = []
    for command, inside in re.findall(r"(\w+)\s*\(((?:[^()\"]|\"[^\"]*\")*)\)", text):
        arguments = []
        for quoted, bare in re.findall(r"\"([^\"]*)\"|(\S+)", inside):
            value = re.sub(
                r"\$\{(\w+)\}", lambda m: variables.get(m[1], m[0]), bare or quoted
            )  # fmt: skip
            arguments += [value] if quoted else value.split(";")
        if command == "set":
            variables[arguments[0]] = ";".join(arguments[1:])
        found.append((command, arguments))
    return found


def listed(folder: str) -> list[str]:
    """What a module's CMake file puts into the package, as it stands in the tree."""
    files: list[str] = []
    for command, arguments in calls(ROOT / folder / "CMakeLists.txt"):
        if command == "slicerMacroBuildScriptedModule":
            kind = ""
            for argument in arguments:
                if argument in ("NAME", "SCRIPTS", "RESOURCES", "WITH_GENERIC_TESTS"):
                    kind = argument
                elif kind in ("SCRIPTS", "RESOURCES"):
                    files.append(argument)
        elif command == "SlicerMacroBuildScriptedCLI":
            name = arguments[arguments.index("NAME") + 1]
            files += [f"{name}.py", f"{name}.xml"]
    return files


def in_tree(folder: str) -> set[str]:
    """Every file of a module, but the one that lists them."""
    top = ROOT / folder
    return {
        path.relative_to(top).as_posix()
        for path in top.rglob("*")
        if path.is_file() and not _NOT_SOURCES & set(path.parts) and path.suffix != ".pyc"
    } - {"CMakeLists.txt"}


@pytest.mark.parametrize("module", ["KidneySeg", "UNetTrainer"])
def test_every_file_of_a_module_is_in_the_package_and_no_other(module):
    names = listed(module)
    assert len(names) == len(set(names))
    assert set(names) == in_tree(module)


def test_no_two_modules_put_a_file_at_the_same_place():
    everything = [name for module in ("KidneySeg", "UNetTrainer") for name in listed(module)]
    assert len(everything) == len({name.casefold() for name in everything})


def test_no_package_is_called_testing():
    """Installed beside other extensions, it would be theirs or ours by chance."""
    packages = {
        name.split("/")[0] for module in ("KidneySeg", "UNetTrainer") for name in listed(module)
    }
    assert not {name.lower() for name in packages} & {"testing", "test", "tests", "utils", "lib"}


def test_the_batch_script_is_copied_as_it_is():
    """A build may keep only the compiled form of what is listed as a script."""
    ((_, arguments),) = (
        c
        for c in calls(ROOT / "KidneySeg/CMakeLists.txt")
        if c[0] == "slicerMacroBuildScriptedModule"
    )
    assert "Scripts/segment_batch.py" in arguments[arguments.index("RESOURCES") :]


def test_slicer_can_read_the_batch_script_whatever_the_locale():
    """Slicer opens a script in the encoding of the locale."""
    (ROOT / "KidneySeg/Scripts/segment_batch.py").read_bytes().decode("ascii")


def test_the_modules_own_tests_are_run_by_ctest():
    assert ("slicer_add_python_unittest", ["SCRIPT", "KidneySeg.py"]) in calls(
        ROOT / "KidneySeg/CMakeLists.txt"
    )


# --- The extension ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def about() -> dict[str, list[str]]:
    """The variables of the top CMake file."""
    return {
        arguments[0]: arguments[1:]
        for command, arguments in calls(ROOT / "CMakeLists.txt")
        if command == "set"
    }


def test_the_extension_describes_itself(about):
    for name in ("HOMEPAGE", "CONTRIBUTORS", "DESCRIPTION", "ICONURL", "SCREENSHOTURLS", "DEPENDS"):
        (value,) = about[f"EXTENSION_{name}"]
        assert value.strip() and ";" not in value  # Slicer passes them on without quotes
    assert about["EXTENSION_DEPENDS"] == ["PyTorch"]
    assert "EXTENSION_CATEGORY" not in about  # that is said in the catalogue's entry


def test_the_commands_come_in_the_order_that_slicer_wants():
    commands = [command for command, _ in calls(ROOT / "CMakeLists.txt")]
    order = ["cmake_minimum_required", "project", "find_package", "add_subdirectory"]
    assert [commands.index(name) for name in order] == sorted(
        commands.index(name) for name in order
    )
    includes = [args for command, args in calls(ROOT / "CMakeLists.txt") if command == "include"]
    assert includes == [
        ["${Slicer_USE_FILE}"],
        ["${Slicer_EXTENSION_GENERATE_CONFIG}"],
        ["${Slicer_EXTENSION_CPACK}"],
    ]
    assert commands[-2:] == ["include", "include"]


def test_the_package_comes_with_our_licence_and_readme(about):
    for name, file in (("LICENSE", "LICENSE"), ("README", "README.md")):
        assert about[f"EXTENSION_{name}_FILE"] == [f"${{CMAKE_CURRENT_SOURCE_DIR}}/{file}"]
        assert (ROOT / file).is_file()


def test_icon_and_screenshots_exist_where_their_addresses_point(about):
    page = about["EXTENSION_HOMEPAGE"][0]
    raw = page.replace("https://github.com/", "https://raw.githubusercontent.com/") + "/main/"
    for address in [*about["EXTENSION_ICONURL"], *about["EXTENSION_SCREENSHOTURLS"][0].split()]:
        assert address.startswith(raw)
        with Image.open(ROOT / address.removeprefix(raw)) as picture:
            picture.verify()


def test_the_catalogues_entry_follows_its_schema(about):
    (project,) = (a[0] for c, a in calls(ROOT / "CMakeLists.txt") if c == "project")
    entry = json.loads((ROOT / f"{project}.json").read_text(encoding="utf-8"))
    assert NEEDED <= set(entry) <= set(CATALOGUE)
    for key, value in entry.items():
        assert type(value) is CATALOGUE[key], key
    assert entry["$schema"].endswith("/slicer-extension-catalog-entry-schema-v1.0.2.json#")
    assert 1 <= entry["tier"] <= 5
    assert entry["category"] == "Segmentation"
    assert entry.get("scm_type", "git") in ("git", "local")
    assert entry["build_dependencies"] == about["EXTENSION_DEPENDS"][0].split()
    assert entry["scm_url"] == about["EXTENSION_HOMEPAGE"][0] + ".git"


# --- With CMake itself ------------------------------------------------------------------------

# Of Slicer's macros only what they do with a module's lists: refuse unknown words and files that
# are not there, and copy.
_STAND_IN = r"""
set(Slicer_USE_FILE "${CMAKE_CURRENT_LIST_DIR}/use.cmake")
set(Slicer_EXTENSION_GENERATE_CONFIG "${CMAKE_CURRENT_LIST_DIR}/config.cmake")
set(Slicer_EXTENSION_CPACK "${CMAKE_CURRENT_LIST_DIR}/cpack.cmake")
set(Slicer_FOUND TRUE)
"""
_USE_FILE = r"""
function(_stand_in_copy kind destination)
  foreach(file ${ARGN})
    if(NOT EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/${file}")
      message(FATAL_ERROR "${kind} given nonexistent file '${file}'")
    endif()
    get_filename_component(folder "${CMAKE_BINARY_DIR}/${destination}/${file}" DIRECTORY)
    file(COPY "${CMAKE_CURRENT_SOURCE_DIR}/${file}" DESTINATION "${folder}")
  endforeach()
endfunction()
macro(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(
    MY "WITH_GENERIC_TESTS;WITH_SUBDIR;VERBOSE" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  if(MY_UNPARSED_ARGUMENTS OR NOT DEFINED MY_NAME)
    message(FATAL_ERROR "slicerMacroBuildScriptedModule: ${MY_UNPARSED_ARGUMENTS}")
  endif()
  _stand_in_copy(SCRIPTS scripted ${MY_SCRIPTS})
  _stand_in_copy(RESOURCES scripted ${MY_RESOURCES})
  add_custom_target(Copy${MY_NAME}PythonScriptFiles)
endmacro()
macro(SlicerMacroBuildScriptedCLI)
  cmake_parse_arguments(MY "NO_INSTALL;VERBOSE" "NAME;FOLDER" "" ${ARGN})
  if(MY_UNPARSED_ARGUMENTS OR NOT DEFINED MY_NAME)
    message(FATAL_ERROR "SlicerMacroBuildScriptedCLI: ${MY_UNPARSED_ARGUMENTS}")
  endif()
  _stand_in_copy(CLI cli ${MY_NAME}.py ${MY_NAME}.xml)
  add_custom_target(${MY_NAME})
endmacro()
macro(slicer_add_python_unittest)
  cmake_parse_arguments(MY "" "TESTNAME_PREFIX;SCRIPT" "SLICER_ARGS" ${ARGN})
  file(APPEND "${CMAKE_BINARY_DIR}/tests.txt" "${MY_SCRIPT}\n")
endmacro()
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """What CMake makes of the extension."""
    if shutil.which("cmake") is None:
        pytest.skip("CMake is not installed")
    folder = tmp_path_factory.mktemp("slicer")
    (folder / "SlicerConfig.cmake").write_text(_STAND_IN)
    (folder / "use.cmake").write_text(_USE_FILE)
    for name in ("config.cmake", "cpack.cmake"):
        (folder / name).write_text(
            'if(NOT PROJECT_NAME STREQUAL "KidneySeg")\n  message(FATAL_ERROR "project")\nendif()\n'
        )
    # Whoever builds extensions need not have a compiler that works for this.
    sources = folder / "sources"
    shutil.copytree(ROOT, sources, ignore=_only_what_is_packed)
    top = sources / "CMakeLists.txt"
    top.write_text(top.read_text().replace("project(KidneySeg)", "project(KidneySeg NONE)"))
    done = subprocess.run(
        [
            "cmake", "-S", str(sources), "-B", str(folder / "build"), f"-DSlicer_DIR={folder}",
            "-DBUILD_TESTING=ON", "-G", "Unix Makefiles", "-DCMAKE_MAKE_PROGRAM=make",
        ],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return folder / "build"


def _only_what_is_packed(folder: str, names: list[str]) -> set[str]:
    if Path(folder) == ROOT:
        return set(names) - {"CMakeLists.txt", "KidneySeg", "UNetTrainer"}
    return _NOT_SOURCES & set(names)


def test_cmake_takes_the_files(built):
    assert (built / "tests.txt").read_text().split() == ["KidneySeg.py"]
    assert {path.name for path in (built / "cli").iterdir()} == {
        "UNetTrainer.py",
        "UNetTrainer.xml",
    }


def test_what_is_packed_runs_where_it_is_put(built, tmp_path):
    """The libraries side by side, without the sources."""
    scripted = built / "scripted"

    def run(*command) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=scripted, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    shipped = scripted / "Resources/Models/kidney-unet-views"
    assert str(shipped) in run("-m", "KidneySegLib", "models")
    image = sitk.GetImageFromArray(np.arange(-60, 60, dtype=np.int16).reshape(4, 5, 6))
    sitk.WriteImage(image, str(tmp_path / "ct.nii.gz"))
    listed = run("Scripts/segment_batch.py", "--input", tmp_path, "--output", tmp_path, "--list")
    assert listed.endswith(f"ct: {tmp_path / 'ct.nii.gz'}\n")


# --- Icons ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawing():
    spec = importlib.util.spec_from_file_location("draw_icons", ROOT / "Resources/draw_icons.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_icons_are_what_their_script_draws(drawing):
    for file, drawn in (
        (drawing.ICON, drawing.icon()),
        (drawing.MODULE_ICON, drawing.icon()),
        (drawing.THUMBNAIL, drawing.thumbnail()),
    ):
        with Image.open(file) as picture:
            assert (picture.size, picture.mode) == (drawn.size, drawn.mode)
            difference = np.abs(np.asarray(picture, int) - np.asarray(drawn, int))
        assert difference.max() <= 2, file  # rounding of another numpy or Pillow


def test_the_icon_is_a_transparent_square_of_128_pixels(drawing):
    with Image.open(drawing.ICON) as picture:
        assert (picture.format, picture.size, picture.mode) == ("PNG", (128, 128), "RGBA")
        opacity = np.asarray(picture)[..., 3]
    assert opacity[[0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [0, 0, 0, 0]
    edge = np.count_nonzero((opacity > 0) & (opacity < 255))
    assert 0.3 < (opacity > 0).mean() < 0.8 and edge > 200  # smooth edges


def test_both_kidneys_can_be_told_apart_at_24_pixels(drawing):
    with Image.open(drawing.ICON) as picture:
        small = np.asarray(picture.resize((24, 24), Image.Resampling.LANCZOS), int)
    solid = small[..., 3] > 200
    blue = solid & (small[..., 2] > small[..., 0] + 40)
    orange = solid & (small[..., 0] > small[..., 2] + 40)
    assert blue[:, :12].sum() > 60 and not blue[:, 14:].any()
    assert orange[:, 12:].sum() > 60 and not orange[:, :10].any()
