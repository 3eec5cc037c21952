package image

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
)

// PackOptions describe an image made from files of this host.
type PackOptions struct {
	// Source is a directory, which becomes the root filesystem, or one statically
	// linked executable, which becomes /bin/<its name>; for an executable /tmp,
	// /etc/passwd and /etc/group (root and nobody) are made too.
	Source string
	// Ref is the image's name.
	Ref        string
	Entrypoint []string // empty, and Cmd empty: the executable
	Cmd        []string
	Env        []string // NAME=value
	User       string
	WorkDir    string
	Labels     map[string]string
	Ports      []string // 8080, 8080/tcp, 53/udp
}

var (
	faultPackWritten = fault.New("image.pack.layer-written")
	faultPackHere    = fault.New("image.pack.manifest-written")
)

// Pack makes an image of one layer and names it. The same files and options give
// the same digest wherever and whenever it is packed: entries are sorted, times
// are the epoch, owners are root. The layer is not compressed, so that the digest
// does not depend on the version of a compressor.
func (s *Store) Pack(ctx context.Context, o PackOptions) (Image, error) {
	img, err := s.pack(ctx, o)
	if err != nil {
		return Image{}, errs.New(errs.KindOf(err), "pack %s: %w", o.Source, err)
	}
	return img, nil
}

func (s *Store) pack(ctx context.Context, o PackOptions) (Image, error) {
	name, err := ParseName(o.Ref)
	if err != nil {
		return Image{}, err
	}
	if name.Digest != "" {
		return Image{}, errs.New(errs.Invalid, "image name %q: a packed image gets its digest from its content; leave it out", o.Ref)
	}
	info, err := os.Stat(o.Source)
	if errors.Is(err, os.ErrNotExist) {
		return Image{}, errs.New(errs.NotFound, "there is no such file or directory")
	}
	if err != nil {
		return Image{}, err
	}
	cfg := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}}
	if cfg.Config, err = o.config(); err != nil {
		return Image{}, err
	}
	write := func(t *treeWriter) error { return t.dir(ctx, o.Source) }
	switch {
	case info.IsDir():
		if len(o.Entrypoint)+len(o.Cmd) == 0 {
			return Image{}, errs.New(errs.Invalid, "say what a container runs: --entrypoint /path/in/the/image")
		}
	case info.Mode().IsRegular():
		if cfg.Architecture, err = elfArch(o.Source); err != nil {
			return Image{}, err
		}
		path := "bin/" + filepath.Base(o.Source)
		if len(o.Entrypoint)+len(o.Cmd) == 0 {
			cfg.Config.Entrypoint = []string{"/" + path}
		}
		write = func(t *treeWriter) error { return t.executable(ctx, o.Source, path) }
	default:
		return Image{}, errs.New(errs.Invalid, "it is neither a directory nor a regular file")
	}

	file, err := os.CreateTemp(s.dir("tmp"), "pack-")
	if err != nil {
		return Image{}, err
	}
	defer os.Remove(file.Name())
	defer file.Close()
	layer, err := writeTree(file, write)
	if err != nil {
		return Image{}, diskError(err)
	}
	if err := file.Sync(); err != nil {
		return Image{}, diskError(err)
	}
	faultPackWritten.Hit()

	c := s.newClaims()
	defer c.release()
	if err := c.commitBlob(file.Name(), layer); err != nil {
		return Image{}, err
	}
	cfg.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.Digest}}
	cfg.History = []ocispec.History{{CreatedBy: "orlop image pack"}}
	data, err := marshal(cfg)
	if err != nil {
		return Image{}, err
	}
	config, err := c.putBlob(ocispec.MediaTypeImageConfig, data)
	if err != nil {
		return Image{}, err
	}
	if data, err = makeManifest(config, []blobRef{layer}); err != nil {
		return Image{}, err
	}
	if _, err := c.putBlob(ocispec.MediaTypeImageManifest, data); err != nil {
		return Image{}, err
	}
	faultPackHere.Hit()
	doc, err := parseDocument(data, "")
	if err != nil {
		return Image{}, err
	}
	rec := newRecord(doc, &cfg)
	if err := s.assemble(ctx, c, &rec, nil, nil); err != nil {
		return Image{}, err
	}
	if err := s.record(rec, []string{name.tagged()}, rec.Manifest.Digest, nil); err != nil {
		return Image{}, err
	}
	return s.Resolve(ctx, rec.ID.String())
}

// config checks the options and returns how the image runs.
func (o *PackOptions) config() (ocispec.ImageConfig, error) {
	c := ocispec.ImageConfig{
		User: o.User, Entrypoint: o.Entrypoint, Cmd: o.Cmd, WorkingDir: o.WorkDir, Labels: o.Labels,
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
	}
	for _, e := range o.Env {
		n, _, ok := strings.Cut(e, "=")
		if !ok || n == "" || strings.IndexByte(e, 0) >= 0 {
			return c, errs.New(errs.Invalid, "environment %q: it must look like NAME=value", e)
		}
		if n == "PATH" {
			c.Env = c.Env[1:]
		}
		c.Env = append(c.Env, e)
	}
	if o.WorkDir != "" && !filepath.IsAbs(o.WorkDir) {
		return c, errs.New(errs.Invalid, "working directory %q: it must be an absolute path in the image", o.WorkDir)
	}
	for _, p := range o.Ports {
		num, proto, ok := strings.Cut(p, "/")
		if !ok {
			proto = "tcp"
		}
		n, err := strconv.ParseUint(num, 10, 16)
		if err != nil || n == 0 || proto != "tcp" && proto != "udp" && proto != "sctp" {
			return c, errs.New(errs.Invalid, "port %q: it must look like 8080 or 53/udp", p)
		}
		if c.ExposedPorts == nil {
			c.ExposedPorts = make(map[string]struct{})
		}
		c.ExposedPorts[num+"/"+proto] = struct{}{}
	}
	return c, nil
}

// elfArch checks that the file runs alone in an image, and returns for which
// architecture it is.
func elfArch(path string) (string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return "", errs.New(errs.Invalid, "it is no ELF executable; to pack a script, pack a directory that contains its interpreter: %w", err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			interp := make([]byte, min(p.Filesz, 256))
			_, _ = p.ReadAt(interp, 0)
			return "", errs.New(errs.Invalid, "it is dynamically linked (needs %s), which an image of it alone does not contain; build it statically (Go: CGO_ENABLED=0), or pack a directory with its libraries",
				bytes.TrimRight(interp, "\x00"))
		}
	}
	if f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return "", errs.New(errs.Invalid, "it is an ELF file, but no executable")
	}
	arch, ok := map[elf.Machine]string{
		elf.EM_X86_64: "amd64", elf.EM_AARCH64: "arm64", elf.EM_386: "386", elf.EM_ARM: "arm",
		elf.EM_RISCV: "riscv64", elf.EM_S390: "s390x", elf.EM_PPC64: "ppc64le",
	}[f.Machine]
	if !ok {
		return "", errs.New(errs.Unsupported, "it is an executable for %s, which Orlop does not know", f.Machine)
	}
	return arch, nil
}

// sortedNames returns the names in a directory in byte order.
func sortedNames(dir *os.File) ([]string, error) {
	names, err := dir.Readdirnames(-1)
	sort.Strings(names)
	return names, err
}
