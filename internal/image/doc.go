// Package image keeps container images: it pulls them from registries, imports
// and exports archives, packs directories, and hands a container the directories
// that its root filesystem is mounted from.
//
// The strategy, with the format on disk, is docs/design/images.md. In short:
//
//   - Content (manifests, configurations, compressed layers) lies in an OCI image
//     layout under <root>/image/blobs, named by digest, on the disk before an image
//     is acknowledged. It is the durable truth.
//   - A layer is unpacked once, into <root>/image/layers/ID, while it is being
//     downloaded, and is shared by every image that has it: it is keyed by its DiffID.
//     A layer whose meaning depends on what lies below it (it hard-links into a lower
//     layer, or leaves out the directories above its files) is keyed by its chain.
//   - An unpacked layer is a cache of its blob: it becomes durable in the
//     background, and one that a power loss may have torn is unpacked again.
//   - Names, images and layers are records in the durable state file. What no
//     record reaches is garbage, and the next Open removes it; so a crash at any
//     point needs no repair but that.
package image
