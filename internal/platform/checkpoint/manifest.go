package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// Manifest is written beside the images when they are whole: CRIU looks neither at the size of a file
// of memory, of which it waits for the rest for ever, nor at what is in it.
type Manifest struct {
	Version int `json:"version"`
	// Cgroups is how control groups were saved, as Images.Cgroups.
	Cgroups string                  `json:"cgroups"`
	Files   map[string]manifestFile `json:"files"`
}

type manifestFile struct {
	SizeBytes int64  `json:"size"`
	CRC64     uint64 `json:"crc64,string"`
}

const (
	manifestName    = "orlop.json"
	manifestVersion = 1
)

// writeManifest writes the one of a directory.
func writeManifest(dir, cgroups string) error {
	m := Manifest{Version: manifestVersion, Cgroups: cgroups, Files: map[string]manifestFile{}}
	list, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list the images: %w", err)
	}
	for _, e := range list {
		// Logs and statistics are written to meanwhile.
		if !e.Type().IsRegular() || !strings.HasSuffix(e.Name(), ".img") && e.Name() != descriptors {
			continue
		}
		if m.Files[e.Name()], err = sum(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("read an image: %w", err)
		}
	}
	data, err := json.Marshal(m)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, manifestName), data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write down the images: %w", err)
	}
	return nil
}

func sum(file string) (manifestFile, error) {
	f, err := os.Open(file)
	if err != nil {
		return manifestFile{}, err
	}
	defer f.Close()
	h := crc64.New(crc64.MakeTable(crc64.ECMA))
	n, err := io.Copy(h, f)
	return manifestFile{n, h.Sum64()}, err
}

// CheckImages reads a directory's manifest and compares the files with it: errs.Corrupt.
// Without one, as with what another runtime has saved, nothing is known.
func CheckImages(dir string) (m Manifest, err error) {
	name := filepath.Join(dir, manifestName)
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &m)
	}
	if err != nil {
		return m, errs.New(errs.Corrupt, "read what the images are: %s: %w", name, err)
	}
	if m.Version > manifestVersion {
		return m, errs.New(errs.FailedPrecondition, "the checkpoint %s was made by a newer version of this program", dir)
	}
	for file, want := range m.Files {
		if filepath.Base(file) != file {
			return m, errs.New(errs.Corrupt, "%s names a file of another directory: %s", name, file)
		}
		have, err := sum(filepath.Join(dir, file))
		switch {
		case err != nil:
			return m, errs.New(errs.Corrupt, "the checkpoint is not whole: %w", err)
		case have.SizeBytes != want.SizeBytes:
			return m, errs.New(errs.Corrupt, "the checkpoint is damaged: %s/%s has %d bytes, and was saved with %d", dir, file, have.SizeBytes, want.SizeBytes)
		case have != want:
			return m, errs.New(errs.Corrupt, "the checkpoint is damaged: %s/%s has another checksum than it was saved with", dir, file)
		}
	}
	return m, nil
}
