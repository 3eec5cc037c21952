package server

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/keeper"
)

// logPlace is the directory that a log is in. Where others may write above it (a pod with
// a volume of the host's log directory, say), it is reached without leaving the root by
// any symlink that they put there: the keeper would write as root wherever it leads.
type logPlace struct {
	dir  string
	root *os.Root // nil: dir is nobody else's
}

// openPlace opens the log's directory, making it where it is missing.
func openPlace(c *keeper.LogConfig) (p logPlace, err error) {
	p.dir = filepath.Dir(c.Path)
	if c.Root == "" {
		return p, os.MkdirAll(p.dir, 0o755)
	}
	rel, err := filepath.Rel(c.Root, p.dir)
	if err != nil || !filepath.IsLocal(rel) {
		return p, errs.New(errs.Invalid, "log %s is not below %s", c.Path, c.Root)
	}
	if err := os.MkdirAll(c.Root, 0o755); err != nil {
		return p, err
	}
	top, err := os.OpenRoot(c.Root)
	if err != nil {
		return p, err
	}
	defer top.Close()
	if err := top.MkdirAll(rel, 0o755); err != nil {
		return p, err
	}
	p.root, err = top.OpenRoot(rel)
	return p, err
}

// open opens a file of the directory for writing. It does not wait for whoever has the
// other end of what is no file.
func (p *logPlace) open(name string, flags int) (*os.File, error) {
	flags |= os.O_WRONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK
	if p.root != nil {
		return p.root.OpenFile(name, flags, 0o640)
	}
	return os.OpenFile(filepath.Join(p.dir, name), flags, 0o640)
}

// names are those of the files in the directory.
func (p *logPlace) names() ([]string, error) {
	var d *os.File
	var err error
	if p.root != nil {
		d, err = p.root.Open(".")
	} else {
		d, err = os.Open(p.dir)
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

func (p *logPlace) close() {
	if p.root != nil {
		p.root.Close()
	}
}
