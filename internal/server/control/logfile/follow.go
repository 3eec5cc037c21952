// Package logfile reads containers' logs: files in the CRI log format
//
//	2026-01-31T12:00:00.000000000Z stdout F a whole line
//	2026-01-31T12:00:00.000000000Z stderr P a part of a line
//
// that are rotated by renaming (log, log.1, log.2 …, the highest number the oldest).
package logfile

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Options say what of a log to read.
type Options struct {
	Path  string
	Tail  int64 // lines from the end; negative: all
	Since time.Time
	// Timestamps puts the time before every line.
	Timestamps bool
	// Follow goes on at the end until More says that nothing comes any more.
	Follow bool
	More   func() bool
	// Next returns the log that followed this one, once there is one; nil: none.
	Next func() (path string, ok bool)
}

// Sink takes what was read: whole lines, or parts of one. It must not keep data.
type Sink func(stream string, data []byte) error

// pollMore is how often a follower asks whether anything may still come. What is
// written wakes it at once.
const pollMore = 250 * time.Millisecond

// Read reads the log into sink. It returns when the end is reached, or, following,
// when nothing comes any more or ctx ends (which is no error).
func Read(ctx context.Context, o Options, sink Sink) error {
	r := &reader{o: o, out: &batch{sink: sink}, middle: map[string]bool{}}
	for {
		next, err := r.log(ctx, o.Path)
		if err == nil {
			err = r.out.flush()
		}
		if err != nil || next == "" || ctx.Err() != nil {
			return err
		}
		o.Path, r.o.Tail = next, -1
	}
}

type reader struct {
	o   Options
	out *batch
	// middle tells for each stream that its last record was a part of a line.
	middle map[string]bool
}

// log reads one log with its rotated files and returns the path of the one that
// follows it, if it came to that.
func (r *reader) log(ctx context.Context, path string) (next string, err error) {
	var wake *watcher
	if r.o.Follow {
		if wake, err = watch(filepath.Dir(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if wake != nil {
			defer wake.close()
		}
	}
	f, skip, err := r.begin(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	defer func() {
		if f != nil {
			f.Close()
		}
	}()
	in := bufio.NewReaderSize(nil, 64<<10)
	if f != nil {
		if _, err := f.Seek(skip, io.SeekStart); err != nil {
			return "", err
		}
		in.Reset(f)
	}
	var partial []byte // a record whose end has not been written yet
	// drain reads what is there.
	drain := func() error {
		for f != nil && ctx.Err() == nil {
			piece, err := in.ReadSlice('\n')
			if err == nil && len(partial) == 0 {
				if err := r.record(piece); err != nil {
					return err
				}
				continue
			}
			partial = append(partial, piece...)
			switch {
			case err == nil:
				if err := r.record(partial); err != nil {
					return err
				}
				partial = partial[:0]
			case errors.Is(err, bufio.ErrBufferFull):
			case errors.Is(err, io.EOF):
				newer, err := newer(path, f)
				if err != nil {
					return err
				}
				if newer == nil {
					return nil
				}
				// The file is complete, and was renamed: one more look, as it may have
				// grown between reading its end and its renaming.
				if rest, err := io.ReadAll(f); err != nil {
					newer.Close()
					return err
				} else if len(rest) > 0 {
					partial = append(partial, rest...)
					for {
						i := bytes.IndexByte(partial, '\n')
						if i < 0 {
							break
						}
						if err := r.record(partial[:i+1]); err != nil {
							newer.Close()
							return err
						}
						partial = partial[i+1:]
					}
				}
				f.Close()
				f, partial = newer, nil
				in.Reset(f)
			default:
				return err
			}
		}
		return nil
	}
	for {
		if err := drain(); err != nil {
			return "", err
		}
		if err := r.out.flush(); err != nil {
			return "", err
		}
		if !r.o.Follow || ctx.Err() != nil {
			return "", nil
		}
		if r.o.Next != nil {
			if next, ok := r.o.Next(); ok && next != path {
				return next, drain() // what came between
			}
		}
		if !r.o.More() {
			return "", drain()
		}
		if wake == nil { // the directory was not there yet
			if wake, err = watch(filepath.Dir(path)); err == nil {
				defer wake.close()
			} else if !errors.Is(err, fs.ErrNotExist) {
				return "", err
			}
		}
		wake.wait(ctx, pollMore)
		if f == nil {
			if f, err = os.Open(path); err == nil {
				in.Reset(f)
			} else if !errors.Is(err, fs.ErrNotExist) {
				return "", err
			}
		}
	}
}

// rotated returns the path of the file of that age; 0 is the one being written.
func rotated(path string, age int) string {
	if age == 0 {
		return path
	}
	return path + "." + strconv.Itoa(age)
}

// begin opens the file to start at, and tells the offset in it.
func (r *reader) begin(path string) (*os.File, int64, error) {
	left := r.o.Tail
	if left == 0 {
		f, err := os.Open(path)
		if err != nil {
			return nil, 0, err
		}
		end, err := f.Seek(0, io.SeekEnd)
		return f, end, err
	}
	var f *os.File
	for age, tries := 0, 0; ; age++ {
		older, err := os.Open(rotated(path, age))
		if errors.Is(err, fs.ErrNotExist) {
			if _, err := os.Stat(rotated(path, age+1)); err == nil && tries < rotationTries {
				// A gap: a rotation is under way, which shifts the oldest file first.
				time.Sleep(rotationPause)
				age, tries = age-1, tries+1
				continue
			}
			if f == nil {
				return nil, 0, err
			}
			return f, 0, nil // the oldest, from its beginning
		}
		if err != nil {
			return nil, 0, err
		}
		if f != nil {
			same := sameFile(f, older)
			f.Close()
			if f = older; same { // rotated since it was looked at
				continue
			}
		}
		f = older
		if left > 0 {
			at, found, err := fromEnd(f, left, age == 0)
			if err != nil {
				f.Close()
				return nil, 0, err
			}
			if left -= found; left <= 0 {
				return f, at, nil
			}
		}
	}
}

// A rotation takes microseconds; a gap that stays was made by somebody else.
const (
	rotationTries = 50
	rotationPause = time.Millisecond
)

func sameFile(a, b *os.File) bool {
	x, xerr := a.Stat()
	y, yerr := b.Stat()
	return xerr == nil && yerr == nil && os.SameFile(x, y)
}

// newer returns the file that took f's place, opened, or nil while f is the one being
// written.
func newer(path string, f *os.File) (*os.File, error) {
	mine, err := f.Stat()
	if err != nil {
		return nil, err
	}
	// age returns how old our file is by now; gone: how many there are.
	age := func() (n int, gone bool, err error) {
		for ; ; n++ {
			info, err := os.Stat(rotated(path, n))
			if errors.Is(err, fs.ErrNotExist) {
				return n, true, nil
			}
			if err != nil || os.SameFile(info, mine) {
				return n, false, err
			}
		}
	}
	for {
		n, gone, err := age()
		if err != nil || n == 0 {
			return nil, err // being written; or between the two renames of a rotation, or removed
		}
		next, err := os.Open(rotated(path, n-1))
		if errors.Is(err, fs.ErrNotExist) {
			continue // renamed just now
		}
		if err != nil {
			return nil, err
		}
		if gone {
			return next, nil // ours is: go on with the oldest that is left
		}
		if now, _, err := age(); err == nil && now == n {
			return next, nil
		}
		next.Close() // a rotation came between: this may be one too new
	}
}

// record passes one record on. A malformed one is shown as it is.
func (r *reader) record(line []byte) error {
	at, stream, part, text, ok := parse(line)
	if !ok {
		return r.out.add("stdout", line, nil)
	}
	if !r.o.Since.IsZero() {
		if t, err := time.Parse(time.RFC3339Nano, string(at)); err == nil && t.Before(r.o.Since) {
			return nil
		}
	}
	var prefix []byte
	if r.o.Timestamps && !r.middle[stream] {
		prefix = at
	}
	r.middle[stream] = part
	if part {
		text = text[:len(text)-1] // the newline is the record's, not the program's
	}
	return r.out.add(stream, text, prefix)
}

// parse splits a record, which ends with a newline.
func parse(line []byte) (at []byte, stream string, part bool, text []byte, ok bool) {
	at, rest, ok1 := bytes.Cut(line, []byte{' '})
	s, rest, ok2 := bytes.Cut(rest, []byte{' '})
	if !ok1 || !ok2 || len(rest) < 2 || rest[1] != ' ' && rest[1] != '\n' && rest[1] != ':' {
		return nil, "", false, nil, false
	}
	tag, text, ok3 := bytes.Cut(rest, []byte{' '})
	if !ok3 { // an empty line whose last space was left out
		tag, text = rest[:1], rest[1:]
	}
	switch string(s) {
	case "stdout":
		stream = "stdout"
	case "stderr":
		stream = "stderr"
	default:
		return nil, "", false, nil, false
	}
	return at, stream, len(tag) > 0 && tag[0] == 'P', text, true
}

// batch joins small pieces of one stream.
type batch struct {
	sink   Sink
	stream string
	data   []byte
}

const batchBytes = 32 << 10

func (b *batch) add(stream string, text, prefix []byte) error {
	if stream != b.stream || len(b.data)+len(text) > batchBytes {
		if err := b.flush(); err != nil {
			return err
		}
	}
	b.stream = stream
	if prefix != nil {
		b.data = append(append(b.data, prefix...), ' ')
	}
	b.data = append(b.data, text...)
	return nil
}

func (b *batch) flush() error {
	if len(b.data) == 0 {
		return nil
	}
	err := b.sink(b.stream, b.data)
	b.data = b.data[:0]
	return err
}

// watcher tells when something in a directory was written, made or renamed (inotify(7)).
type watcher struct{ f *os.File }

func watch(dir string) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "watch", Path: dir, Err: err}
	}
	return &watcher{os.NewFile(uintptr(fd), "inotify")}, nil
}

// wait returns once something happened, ctx ended, or the time passed. A nil watcher
// waits for the time.
func (w *watcher) wait(ctx context.Context, d time.Duration) {
	if w == nil {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		return
	}
	w.f.SetReadDeadline(time.Now().Add(d))
	stop := context.AfterFunc(ctx, func() { w.f.SetReadDeadline(time.Now()) })
	defer stop()
	if ctx.Err() != nil {
		return
	}
	var buf [4096]byte
	w.f.Read(buf[:])
}

func (w *watcher) close() { w.f.Close() }
