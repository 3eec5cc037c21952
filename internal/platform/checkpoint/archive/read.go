package archive

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/ctxreader"
	"github.com/orlop-io/orlop/internal/base/errs"
)

// Archive is what an archive says of itself.
type Archive struct {
	Config Config
	Spec   specs.Spec
}

// maxDump is how large a file may be that is read as a whole: specifications have environments of two
// megabytes at most.
const maxDump = 8 << 20

// Read reads what an archive says of its container: errs.NotFound, or errs.Corrupt for what is no archive.
func Read(location string) (*Archive, error) {
	a := new(Archive)
	found := 0
	err := each(location, func(h *tar.Header, r io.Reader) error {
		var into any
		switch h.Name {
		case ConfigFile:
			into = &a.Config
		case SpecFile:
			into = &a.Spec
		default:
			return nil
		}
		found++
		raw, err := io.ReadAll(io.LimitReader(r, maxDump+1))
		if err == nil && len(raw) > maxDump {
			err = fmt.Errorf("it is larger than %d bytes", maxDump)
		}
		if err == nil {
			err = json.Unmarshal(raw, into)
		}
		if err != nil {
			return errs.New(errs.Corrupt, "%s: %w", h.Name, err)
		}
		return nil
	})
	if err == nil && found < 2 {
		err = errs.New(errs.Corrupt, "it has no %s or no %s", ConfigFile, SpecFile)
	}
	if err != nil {
		return nil, fmt.Errorf("read the checkpoint %s: %w", location, err)
	}
	return a, nil
}

// Unpack makes in a directory what a restore needs of an archive: CRIU's images, and what has become of the
// image's files. Of the archive's names nothing but those is made.
func Unpack(ctx context.Context, location, dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, ImagesDir), 0o700); err != nil {
		return err
	}
	err := each(location, func(h *tar.Header, r io.Reader) error {
		parent, name := path.Split(h.Name)
		if h.Typeflag != tar.TypeReg || !(parent == ImagesDir+"/" && fs.ValidPath(name) || h.Name == RootfsDiffFile || h.Name == DeletedFile) {
			return nil
		}
		f, err := os.OpenFile(filepath.Join(dir, h.Name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, ctxreader.New(ctx, r))
		return errors.Join(err, f.Close())
	})
	if err != nil {
		return full(fmt.Errorf("unpack the checkpoint %s: %w", location, err))
	}
	return nil
}

// each calls fn for every entry, by its name without a leading "./".
func each(location string, fn func(*tar.Header, io.Reader) error) error {
	// Who opens a FIFO waits.
	f, err := os.OpenFile(location, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.NotFound, "there is no such file")
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return errs.New(errs.Corrupt, "it is no file")
	}
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return errs.New(errs.Corrupt, "it is no tar archive, or is damaged: %w", err)
		}
		h.Name = strings.TrimPrefix(h.Name, "./")
		if err := fn(h, tr); err != nil {
			return err
		}
	}
}
