"""Label maps for other programs: pictures, run lengths, surfaces, DICOM SEG.

Each room takes SimpleITK images, so it works on files, on results of `KidneySegLib.segment` and,
with `KidneySegLib.scene.labels_image`, on what is in 3D Slicer's scene.

- `labels`: what the labels of a map are, and how a map gets onto the grid of its CT.
- `slices`: one PNG or TIFF for each slice, and back.
- `runlength`: run lengths as in the Kaggle ultrasound nerve segmentation competition, and back.
- `surfaces`: closed surfaces in mm as STL or OBJ.
- `dicomseg`: a DICOM segmentation object of a DICOM CT.
"""
