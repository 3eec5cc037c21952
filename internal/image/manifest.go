package image

import (
	"bytes"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/orlop-io/orlop/internal/base/errs"
)

const (
	// maxManifest is what the distribution-spec asks registries to take at least,
	// and what they take at most; maxConfig is larger, as configurations carry history.
	maxManifest = 4 << 20
	maxConfig   = 8 << 20
	// maxLayers is above what any builder makes (Docker: 127) and below what
	// overlayfs stacks (500).
	maxLayers = 256
)

// Docker's names of what OCI standardised.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar"
)

// accept is what a registry may answer with.
var accept = strings.Join([]string{ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, dockerList, dockerManifest}, ", ")

// document is a manifest or an index as it came.
type document struct {
	data      []byte
	mediaType string
	manifest  ocispec.Manifest
	index     ocispec.Index
	isIndex   bool
}

func (d *document) digest() digest.Digest { return digest.FromBytes(d.data) }

// parseDocument reads a manifest or an index. declared is the media type by which
// it came; the document's own wins, but the two must not be of different kinds
// (the distinction decides what is run: CVE-2021-41190).
func parseDocument(data []byte, declared string) (*document, error) {
	var probe struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     string          `json:"mediaType"`
		Config        json.RawMessage `json:"config"`
		Layers        json.RawMessage `json:"layers"`
		Manifests     json.RawMessage `json:"manifests"`
		FSLayers      json.RawMessage `json:"fsLayers"`
	}
	if len(data) > maxManifest {
		return nil, errs.New(errs.Invalid, "the manifest is larger than %d bytes", maxManifest)
	}
	if err := json.Unmarshal(data, &probe); err != nil {
		return nil, errs.New(errs.Invalid, "the manifest is no valid JSON: %w", err)
	}
	if probe.SchemaVersion == 1 || probe.FSLayers != nil {
		return nil, errs.New(errs.Unsupported, "the image has Docker's manifest schema 1, which was given up in 2017; push it again with a current tool")
	}
	declared, _, _ = strings.Cut(declared, ";")
	d := &document{data: data, mediaType: probe.MediaType}
	if d.mediaType == "" {
		d.mediaType = strings.TrimSpace(declared)
	}
	d.isIndex = probe.Manifests != nil
	if d.isIndex && (probe.Layers != nil || probe.Config != nil) {
		return nil, errs.New(errs.Invalid, "the manifest is an index and an image at the same time")
	}
	switch d.mediaType {
	case ocispec.MediaTypeImageIndex, dockerList:
		if !d.isIndex {
			return nil, errs.New(errs.Invalid, "the manifest is said to be an index, and has no manifests in it")
		}
	case ocispec.MediaTypeImageManifest, dockerManifest:
		if d.isIndex {
			return nil, errs.New(errs.Invalid, "the manifest is said to be an image's, and is an index")
		}
	default:
		if probe.MediaType != "" {
			return nil, errs.New(errs.Unsupported, "the manifest's media type %q is not that of a container image", d.mediaType)
		}
		d.mediaType = ocispec.MediaTypeImageManifest // an old tool, or a registry that says text/plain
		if d.isIndex {
			d.mediaType = ocispec.MediaTypeImageIndex
		}
	}
	var err error
	if d.isIndex {
		err = json.Unmarshal(data, &d.index)
	} else {
		err = json.Unmarshal(data, &d.manifest)
	}
	if err != nil {
		return nil, errs.New(errs.Invalid, "the manifest is malformed: %w", err)
	}
	if d.isIndex {
		return d, nil
	}
	return d, checkManifest(&d.manifest)
}

func checkManifest(m *ocispec.Manifest) error {
	switch m.Config.MediaType {
	case ocispec.MediaTypeImageConfig, dockerConfig, "":
	default:
		return errs.New(errs.Unsupported, "it is no container image but an artifact of type %q", m.Config.MediaType)
	}
	if err := checkDescriptor(m.Config, maxConfig); err != nil {
		return errs.New(errs.Invalid, "the image's configuration: %w", err)
	}
	if len(m.Layers) > maxLayers {
		return errs.New(errs.Invalid, "the image has %d layers; %d is the most", len(m.Layers), maxLayers)
	}
	for i, l := range m.Layers {
		if err := checkDescriptor(l, 1<<50); err != nil {
			return errs.New(errs.Invalid, "layer %d: %w", i, err)
		}
		if !layerType(l.MediaType) {
			return errs.New(errs.Unsupported, "layer %d has the media type %q, which is not one of a container image that can be unpacked", i, l.MediaType)
		}
	}
	return nil
}

// isSHA256 tells a well-formed sha256 digest. It must be asked before a method of a
// digest from outside is called: most of them panic on a malformed one.
func isSHA256(d digest.Digest) bool {
	return strings.HasPrefix(string(d), "sha256:") && d.Validate() == nil
}

func checkDescriptor(d ocispec.Descriptor, most int64) error {
	if !isSHA256(d.Digest) {
		return errs.New(errs.Invalid, "%q is no sha256 digest", d.Digest)
	}
	if d.Size < 0 || d.Size > most {
		return errs.New(errs.Invalid, "its size of %d bytes is not between 0 and %d", d.Size, most)
	}
	return nil
}

// layerType tells which media types are tar archives that are compressed in a way
// that is known. The non-distributable ones are, too; registries have them.
func layerType(t string) bool {
	if rest, ok := strings.CutPrefix(t, "application/vnd.oci.image.layer.nondistributable.v1.tar"); ok {
		return rest == "" || rest == "+gzip" || rest == "+zstd"
	}
	if rest, ok := strings.CutPrefix(t, ocispec.MediaTypeImageLayer); ok {
		return rest == "" || rest == "+gzip" || rest == "+zstd"
	}
	if rest, ok := strings.CutPrefix(t, dockerLayer); ok {
		return rest == "" || rest == ".gzip" || rest == ".zstd"
	}
	return t == "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
}

// platform is what an image is for.
type platform struct{ os, arch, variant string }

func (p platform) String() string {
	s := p.os + "/" + p.arch
	if p.variant != "" {
		s += "/" + p.variant
	}
	return s
}

// parsePlatform reads os/arch[/variant] or arch; "" is this machine's.
func parsePlatform(s string) (platform, error) {
	p := platform{os: "linux", arch: runtime.GOARCH}
	if s == "" {
		return p.normal(), nil
	}
	parts := strings.Split(s, "/")
	if len(parts) == 1 {
		parts = []string{"linux", parts[0]}
	}
	if len(parts) > 3 || slices.Contains(parts, "") {
		return p, errs.New(errs.Invalid, "platform %q: it must look like linux/amd64 or linux/arm/v7", s)
	}
	p = platform{os: parts[0], arch: parts[1]}
	if len(parts) == 3 {
		p.variant = parts[2]
	}
	return p.normal(), nil
}

// normal brings the spellings in use to Go's.
func (p platform) normal() platform {
	p.os, p.arch, p.variant = strings.ToLower(p.os), strings.ToLower(p.arch), strings.ToLower(p.variant)
	switch p.arch {
	case "x86_64", "x86-64":
		p.arch = "amd64"
	case "aarch64":
		p.arch = "arm64"
	case "i386", "i686":
		p.arch = "386"
	case "armhf", "armv7l":
		p.arch, p.variant = "arm", "v7"
	}
	if p.arch == "arm64" && (p.variant == "v8" || p.variant == "8") || p.arch == "amd64" && p.variant == "v1" {
		p.variant = ""
	}
	return p
}

// fits tells how well an image for q runs on p: 0 not at all, higher is better.
func (p platform) fits(q platform) int {
	q = q.normal()
	switch {
	case q.os != p.os || q.arch != p.arch:
		return 0
	case q.variant == p.variant:
		return 3
	case q.variant == "":
		return 2
	case p.arch == "arm" && (p.variant == "" || q.variant < p.variant):
		return 1 // an older variant runs on a newer machine
	case p.variant == "" && p.arch != "amd64":
		return 1
	}
	return 0
}

// choose returns the manifest of the index for the platform.
func choose(index *ocispec.Index, want platform) (ocispec.Descriptor, error) {
	best, rank := ocispec.Descriptor{}, 0
	var there []string
	for _, d := range index.Manifests {
		switch d.MediaType {
		case ocispec.MediaTypeImageManifest, dockerManifest, "":
		default:
			continue // nested indexes, artifacts
		}
		p := want // a manifest without a platform is for all
		if d.Platform != nil {
			p = platform{d.Platform.OS, d.Platform.Architecture, d.Platform.Variant}
			if p.os == "unknown" {
				continue // attestations
			}
			there = append(there, p.String())
		}
		if r := want.fits(p); r > rank {
			best, rank = d, r
		}
	}
	if rank == 0 {
		return best, errs.New(errs.NotFound, "there is no image for %s in it; there is: %s", want, strings.Join(there, ", "))
	}
	if err := checkDescriptor(best, maxManifest); err != nil {
		return best, errs.New(errs.Invalid, "the manifest for %s: %w", want, err)
	}
	return best, nil
}

// parseConfig reads an image's configuration and checks it against the manifest.
func parseConfig(data []byte, m *ocispec.Manifest, want platform) (*ocispec.Image, error) {
	var c ocispec.Image
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, errs.New(errs.Invalid, "the image's configuration is malformed: %w", err)
	}
	if len(c.RootFS.DiffIDs) != len(m.Layers) {
		return nil, errs.New(errs.Invalid, "the manifest has %d layers, the image's configuration %d", len(m.Layers), len(c.RootFS.DiffIDs))
	}
	for i, d := range c.RootFS.DiffIDs {
		if !isSHA256(d) {
			return nil, errs.New(errs.Invalid, "the DiffID %q of layer %d is no sha256 digest", d, i)
		}
	}
	if c.OS == "" {
		c.OS = "linux"
	}
	if c.Architecture == "" {
		c.Architecture = want.arch
	}
	is := platform{c.OS, c.Architecture, c.Variant}
	if want.fits(is) == 0 {
		return nil, errs.New(errs.Invalid, "the image is for %s, not for %s; if that is meant, name its platform", is.normal(), want)
	}
	return &c, nil
}

// newRecord puts an image's record together; the layers' keys are filled in later.
func newRecord(doc *document, c *ocispec.Image) imageRecord {
	m := &doc.manifest
	r := imageRecord{
		ID:       m.Config.Digest,
		Config:   refOf(m.Config),
		Manifest: blobRef{doc.mediaType, doc.digest(), int64(len(doc.data))},
		Platform: platform{c.OS, c.Architecture, c.Variant}.normal().String(),
		Run:      c.Config,
	}
	if c.Created != nil {
		r.Created = c.Created.UTC()
	}
	for i, l := range m.Layers {
		r.Layers = append(r.Layers, layerRef{Blob: refOf(l), DiffID: c.RootFS.DiffIDs[i]})
	}
	return r
}

func refOf(d ocispec.Descriptor) blobRef { return blobRef{d.MediaType, d.Digest, d.Size} }

func (b blobRef) descriptor() ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: b.MediaType, Digest: b.Digest, Size: b.SizeBytes}
}

// makeManifest returns a manifest of the given parts.
func makeManifest(config blobRef, layers []blobRef) ([]byte, error) {
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    config.descriptor(),
		Layers:    []ocispec.Descriptor{},
	}
	for _, l := range layers {
		m.Layers = append(m.Layers, l.descriptor())
	}
	return marshal(m)
}

// marshal encodes JSON without escaping HTML.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// epoch is the time of what has none, so that equal content has equal digests.
var epoch = time.Unix(0, 0).UTC()
