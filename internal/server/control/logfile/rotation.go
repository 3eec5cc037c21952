package logfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// aged is one file of a log: 0 is the one being written, the highest the oldest.
type aged struct {
	age  int
	info fs.FileInfo
}

// errRotated says that what was looked at has another name by now.
var errRotated = errors.New("the log was rotated meanwhile")

// rotated returns the path of the file of that age.
func rotated(path string, age int) string {
	if age == 0 {
		return path
	}
	return path + "." + strconv.Itoa(age)
}

// ages returns the files of a log as they were at one moment, the youngest first. In the
// middle of a rotation, which renames the oldest first, one age may be missing; their
// order is right all the same. None is fs.ErrNotExist.
func ages(path string) ([]aged, error) {
	before, err := look(path)
	for err == nil {
		var now []aged
		if now, err = look(path); err == nil && slices.EqualFunc(before, now, func(a, b aged) bool { return a.age == b.age && os.SameFile(a.info, b.info) }) {
			if len(now) == 0 {
				return nil, &os.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
			}
			return now, nil
		}
		before = now
	}
	return nil, err
}

// look lists them once, which is not one moment.
func look(path string) (list []aged, err error) {
	ents, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	for _, e := range ents {
		rest, ok := strings.CutPrefix(e.Name(), filepath.Base(path))
		if !ok {
			continue
		}
		age := 0
		if rest != "" {
			if age, err = strconv.Atoi(strings.TrimPrefix(rest, ".")); err != nil || age < 1 || rest[0] != '.' {
				continue // another container's, or a file on its way
			}
		}
		info, err := os.Stat(rotated(path, age))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, aged{age, info})
	}
	slices.SortFunc(list, func(a, b aged) int { return a.age - b.age })
	return list, nil
}

// open opens the file, or says errRotated if another has its name now.
func (a aged) open(path string) (*os.File, error) {
	f, err := os.Open(rotated(path, a.age))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errRotated
	}
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !os.SameFile(info, a.info) {
		f.Close()
		return nil, errors.Join(err, errRotated)
	}
	return f, nil
}
