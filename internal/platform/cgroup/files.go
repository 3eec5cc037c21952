package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/rawfile"
)

// write sets one file of a group. Control files take a value in a single write(2);
// os.WriteFile would truncate, which costs another call.
func write(dir, file, value string) error {
	p := dir + "/" + file
	there, err := writeIfThere(dir, file, value)
	if err == nil && !there {
		err = refused(p, value, unix.ENOENT)
	}
	return err
}

// writeIfThere is write, but that a file that is not there is no error.
func writeIfThere(dir, file, value string) (there bool, err error) {
	p := dir + "/" + file
	fd, err := openat(p, unix.O_WRONLY)
	if err == unix.ENOENT {
		return false, nil
	}
	if err == nil {
		_, err = writeFD(fd, value)
		unix.Close(fd)
	}
	if err != nil {
		return true, refused(p, value, err)
	}
	return true, nil
}

func openat(p string, flags int) (int, error) {
	for {
		fd, err := unix.Open(p, flags|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

func writeFD(fd int, value string) (int, error) {
	for {
		n, err := unix.Write(fd, []byte(value))
		if err != unix.EINTR {
			return n, err
		}
	}
}

// refused gives an error of a control file its kind, and says what may be done.
func refused(p, value string, err error) error {
	file := filepath.Base(p)
	switch {
	case errors.Is(err, unix.ENOENT):
		if _, e := os.Stat(filepath.Dir(p)); e != nil {
			return errs.New(errs.NotFound, "cgroup: set %s to %q: the group does not exist", p, value)
		}
		return errs.New(errs.Unsupported, "cgroup: this kernel, or what it enables here, has no %s to set to %q (%s)", file, value, p)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE), errors.Is(err, unix.EOVERFLOW),
		errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENOSPC):
		return errs.New(errs.Invalid, "cgroup: the kernel refuses %q for %s (%s): %w", value, file, p, err)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTSUP):
		return errs.New(errs.Unsupported, "cgroup: the kernel cannot set %s to %q (%s): %w", file, value, p, err)
	case errors.Is(err, unix.EBUSY):
		return errs.New(errs.InUse, "cgroup: the present use forbids %q for %s (%s): %w", value, file, p, err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, unix.EROFS):
		return errs.New(errs.PermissionDenied, "cgroup: not allowed to set %s to %q (%s): %w", file, value, p, err)
	case errors.Is(err, unix.ESRCH):
		return errs.New(errs.NotFound, "cgroup: set %s to %q: there is no such process: %w", p, value, err)
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOMEM):
		return errs.New(errs.ResourceExhausted, "cgroup: set %s to %q: %w", p, value, err)
	}
	return fmt.Errorf("cgroup: set %s to %q: %w", p, value, err)
}

// read returns the contents of one file of a group without the last newline. A file
// that is missing is errs.NotFound.
func read(dir, file string) (string, error) {
	b, err := rawfile.Read(dir + "/" + file)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) { // ENODEV: being removed
			return "", errs.New(errs.NotFound, "cgroup: read: %w", err)
		}
		return "", fmt.Errorf("cgroup: read: %w", err)
	}
	return string(bytes.TrimRight(b, "\n")), nil
}

// readUint reads a file with one number; "max" and everything above 2^63-1 rounded
// down to a page, which v1 has for no limit, is 0 with none set.
func readUint(dir, file string) (v uint64, none bool, err error) {
	s, err := read(dir, file)
	if err != nil {
		return 0, false, err
	}
	return parseLimit(s)
}

const v1Unlimited = 1<<63 - 1<<16 // pages are at most 64 KiB

func parseLimit(s string) (v uint64, none bool, err error) {
	if s == "max" {
		return 0, true, nil
	}
	v, err = strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, false, errs.New(errs.Corrupt, "cgroup: %q is not a number", s)
	}
	if v >= v1Unlimited {
		return 0, true, nil
	}
	return v, false, nil
}

// flat reads a file of "key value" lines; what is not a number is left out. A file
// that is missing is an empty table.
func flat(dir, file string) (map[string]uint64, error) {
	s, err := read(dir, file)
	if err != nil {
		if errors.Is(err, errs.NotFound) {
			return nil, nil
		}
		return nil, err
	}
	m := make(map[string]uint64, 48)
	for line := range strings.SplitSeq(s, "\n") {
		key, value, ok := strings.Cut(line, " ")
		if !ok {
			continue
		}
		if v, err := strconv.ParseUint(value, 10, 64); err == nil {
			m[key] = v
		}
	}
	return m, nil
}

func exists(dir, file string) bool {
	return unix.Access(dir+"/"+file, unix.F_OK) == nil
}
