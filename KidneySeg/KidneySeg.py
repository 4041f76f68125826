"""KidneySeg in 3D Slicer: metadata, the choices, the window's wiring, the logic and its test.

What happens stands in KidneySegLib, which is imported when it is needed.
"""

import importlib
import sys
from typing import Annotated

import slicer
import vtk
from slicer import (
    vtkMRMLLabelMapVolumeNode,
    vtkMRMLScalarVolumeNode,
    vtkMRMLSegmentationNode,
    vtkMRMLTableNode,
)
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

HOMEPAGE = "https://github.com/KidneySeg/SlicerKidneySeg"


class KidneySeg(ScriptedLoadableModule):
    """What Slicer shows of the module before it is opened."""

    def __init__(self, parent):
        super().__init__(parent)
        self.parent.title = _("Kidney Segmentation")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = []
        self.parent.contributors = ["The KidneySeg founders"]
        self.parent.helpText = _(
            "Segments both kidneys in a CT, left and right, and measures their volumes: on this "
            "computer, without a graphics card, in seconds. Research use only, not for clinical "
            'use. See the <a href="{url}">documentation</a>.'
        ).format(url=HOMEPAGE)
        self.parent.acknowledgementText = _(
            "The models were trained on BTCV, 3D-IRCADb-01 and KiTS19 data; each model's card "
            "names its sources and their terms."
        )
        slicer.app.connect("startupCompleted()", registerSampleData)


def registerSampleData():
    """Offer sample data in the module Sample Data; nothing is made or downloaded here."""
    from KidneySegLib.samples import register_sample_data

    register_sample_data()


@parameterNodeWrapper
class KidneySegParameterNode:
    """The choices, saved with the scene.

    inputVolume: the CT.
    segmentation: gets the result; None for a new one.
    reference: what the result is compared with, or None.
    resultsTable: the figures.
    model: name of the model; empty for the default.
    mergeSides: one segment for both kidneys.
    keepSmall: keep components that are too small or in the wrong place for a kidney.
    batchSlices: slices that go through the network at once; 0 for automatic.
    mirror: test-time augmentation.
    outline, fillOpacity: of the red/blue comparison.
    """

    inputVolume: vtkMRMLScalarVolumeNode
    segmentation: vtkMRMLSegmentationNode
    reference: vtkMRMLSegmentationNode | vtkMRMLLabelMapVolumeNode | None
    resultsTable: vtkMRMLTableNode
    model: str = ""
    mergeSides: bool = False
    keepSmall: bool = False
    batchSlices: Annotated[int, WithinRange(0, 64)] = 0
    mirror: bool = False
    outline: bool = True
    fillOpacity: Annotated[float, WithinRange(0, 1)] = 0.3


class KidneySegWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Brings panel, parameter node and scene together."""

    logic = None
    panel = None
    _parameterNode = None
    _guiTag = None
    _sceneChanged = False

    def setup(self):
        super().setup()
        from KidneySegLib.widget import Panel

        uiWidget = slicer.util.loadUI(self.resourcePath("UI/KidneySeg.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = KidneySegLogic()
        self.panel = Panel(self.ui, self.logic)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        for event in (slicer.mrmlScene.EndCloseEvent, slicer.mrmlScene.EndImportEvent):
            self.addObserver(slicer.mrmlScene, event, self.onSceneChanged)
        self.initializeParameterNode()

    def cleanup(self):
        """The application ends, or the module is reloaded: nothing of it runs on."""
        self.removeObservers()
        if self.panel is not None:
            self.panel.cancel()
        self.setParameterNode(None)

    def enter(self):
        self.initializeParameterNode()

    def onSceneStartClose(self, caller, event):
        self.panel.cancel()
        self.setParameterNode(None)

    def onSceneChanged(self, caller, event):
        """A scene was closed or loaded: show its choices, now or when the module is opened."""
        self._sceneChanged = True
        if self.parent.isEntered:
            self.initializeParameterNode()

    def initializeParameterNode(self):
        """Show the scene's choices; take its first volume where none is chosen."""
        # Not one more wrapper each time: they observe the node for as long as the module lives.
        if self._parameterNode is None or self._sceneChanged:
            self.setParameterNode(self.logic.getParameterNode())
            self._sceneChanged = False
        else:
            self.panel.set_parameters(self._parameterNode)
        if self._parameterNode.inputVolume is None:
            for volume in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"):
                isLabelMap = volume.GetClassName() != "vtkMRMLScalarVolumeNode"
                if not isLabelMap and not volume.GetHideFromEditors():
                    self._parameterNode.inputVolume = volume
                    break

    def setParameterNode(self, parameterNode):
        changed = vtk.vtkCommand.ModifiedEvent
        if self._parameterNode is not None:
            self._parameterNode.disconnectGui(self._guiTag)
            if self.hasObserver(self._parameterNode, changed, self.onParameterNodeModified):
                self.removeObserver(self._parameterNode, changed, self.onParameterNodeModified)
        self._parameterNode = parameterNode
        if parameterNode is not None:
            self._guiTag = parameterNode.connectGui(self.ui)
            self.addObserver(parameterNode, changed, self.onParameterNodeModified)
        if self.panel is not None:
            self.panel.set_parameters(parameterNode)

    def onParameterNodeModified(self, caller=None, event=None):
        self.panel.update()

    def onReload(self):
        """Reload the library along with this file, which is all that Slicer itself reloads."""
        for name in [name for name in sys.modules if name.partition(".")[0] == "KidneySegLib"]:
            del sys.modules[name]
        importlib.invalidate_caches()
        importlib.import_module("KidneySegLib.widget")
        super().onReload()


class KidneySegLogic(ScriptedLoadableModuleLogic):
    """Everything the window does, for scripts and the Python console."""

    def getParameterNode(self):
        return KidneySegParameterNode(super().getParameterNode())

    def installRequirements(self, ask=True, device="auto"):
        """Install what is missing in Slicer's Python, after asking; returns whether anything was.

        :param ask: False for scripts whose user has agreed already.
        :param device: what will compute; only for a GPU, cuda or mps, is PyTorch among it.
        :raises KidneySegLib.errors.KidneySegError: what to do, in one sentence.
        """
        from KidneySegLib.installing import SlicerInstaller, ensure

        return ensure(SlicerInstaller(), ask=ask, device=device)

    def segment(
        self,
        volumeNode,
        segmentationNode=None,
        model=None,
        device="auto",
        referenceNode=None,
        mergeSides=False,
        progress=None,
        keepSmall=False,
        batchSlices=0,
        mirror=False,
    ):
        """Segment the kidneys in a CT volume and return the segmentation node.

        :param volumeNode: vtkMRMLScalarVolumeNode; its parent transforms are taken into account.
        :param segmentationNode: gets the result; by default a new one.
        :param model: name or folder of a model.
        :param device: auto, cpu, cuda, cuda:N or mps.
        :param referenceNode: segmentation or label map to compare with, as `compare` does.
        :param mergeSides: one segment for both kidneys.
        :param progress: called with the share done, 0 to 1, and the step's name.
        :param keepSmall: keep components that are too small or in the wrong place for a kidney.
        :param batchSlices: slices that go through the network at once; 0 fits them to their size.
        :param mirror: test-time augmentation by mirroring.
        :raises KidneySegLib.errors.KidneySegError: one sentence; the scene is as before.
        """
        self.installRequirements(device=device)
        from KidneySegLib.job import Job

        job = Job(
            volumeNode,
            segmentationNode,
            model=model,
            device=device,
            reference=referenceNode,
            merge_sides=mergeSides,
            keep_small=keepSmall,
            batch_slices=batchSlices,
            mirror=mirror,
            on_progress=progress,
        )
        job.start()
        job.wait()
        return job.segmentation

    def segmentAsync(
        self,
        volumeNode,
        segmentationNode=None,
        model=None,
        device="auto",
        referenceNode=None,
        mergeSides=False,
        onProgress=None,
        onDone=None,
        onError=None,
        onCancel=None,
        onLine=None,
        keepSmall=False,
        batchSlices=0,
        mirror=False,
    ):
        """Start a segmentation and return at once; the choices are those of `segment`.

        :param onProgress: called with the share done, 0 to 1, and the step's name.
        :param onDone: called with the segmentation node.
        :param onError: called with a sentence and the log.
        :param onCancel: called when the run was cancelled, or the scene closed.
        :param onLine: called with each line for the log.
        :return: KidneySegLib.job.Run, whose cancel() stops it.
        :raises KidneySegLib.errors.KidneySegError: it cannot be started; one sentence.
        """
        self.installRequirements(device=device)
        from KidneySegLib.job import Job, Run

        job = Job(
            volumeNode,
            segmentationNode,
            model=model,
            device=device,
            reference=referenceNode,
            merge_sides=mergeSides,
            keep_small=keepSmall,
            batch_slices=batchSlices,
            mirror=mirror,
            on_progress=onProgress,
            on_line=onLine,
        )
        job.start()
        return Run(job, onDone, onError, onCancel)

    def compare(self, segmentationNode, referenceNode, volumeNode=None):
        """Volumes, Dice, IoU and surface distances of a segmentation against a reference.

        :param volumeNode: the CT; by default the one that the segmentation was made on.
        :return: see KidneySegLib.measure.evaluate.
        """
        self.installRequirements()
        from KidneySegLib.scene import compare

        return compare(segmentationNode, referenceNode, volumeNode)


class KidneySegTest(ScriptedLoadableModuleTest):
    """For Slicer's own test runner: a generated CT, and the real worker process."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def tearDown(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        self.setUp()
        self.test_segment_compare_and_show()
        self.tearDown()

    def generateCase(self):
        """A generated CT as a volume node, and its kidneys as a label map node."""
        import numpy as np
        import SimpleITK as sitk

        from KidneySegLib.phantom import generate

        phantom = generate(1, (128, 128, 40), tumour=False)
        nodes = []
        for image, kind in (
            (phantom.image, "vtkMRMLScalarVolumeNode"),
            (phantom.sides, "vtkMRMLLabelMapVolumeNode"),
        ):
            ijkToRAS = np.eye(4)
            ijkToRAS[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
            ijkToRAS[:3, 3] = image.GetOrigin()
            ijkToRAS[:2] *= -1  # from LPS
            voxels = sitk.GetArrayFromImage(image)
            nodes.append(slicer.util.addVolumeFromArray(voxels, ijkToRAS, nodeClassName=kind))
        return nodes

    def test_segment_compare_and_show(self):
        from KidneySegLib import scenecomparison

        volume, reference = self.generateCase()
        logic = KidneySegLogic()
        logic.installRequirements(ask=False)  # in testing mode nobody could answer
        steps = []
        self.delayDisplay("Segmenting a generated CT")
        node = logic.segment(volume, progress=lambda share, step: steps.append(step))
        segmentation = node.GetSegmentation()
        self.assertEqual(segmentation.GetSegmentIDs(), ("left_kidney", "right_kidney"))
        self.assertIn("predict", steps)
        scores = logic.compare(node, reference)
        self.assertGreater(scores["dice"]["left"], 0.8)
        self.assertGreater(scores["dice"]["right"], 0.8)
        self.delayDisplay("Showing it in red and blue")
        scenecomparison.show_comparison(node, reference)
        self.assertTrue(scenecomparison.comparison_shown(node, reference))
        scenecomparison.hide_comparison(node, reference)
        self.assertFalse(scenecomparison.comparison_shown(node, reference))
        self.delayDisplay("Closing the scene during a run")
        run = logic.segmentAsync(volume)
        slicer.mrmlScene.Clear()
        self.assertTrue(run.job.ended)
        self.delayDisplay("Test passed")
