package server

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/platform/keeper"
)

// How output reaches the log with nothing lost and nothing doubled when the keeper
// is killed at any instruction:
//
//  1. splice(2) moves bytes from the FIFO to the end of a stage, a file on tmpfs. In
//     one system call they leave the one and are in the other; the stage's size says
//     how far.
//  2. Whole lines of the stage are formatted and written to the log at the offset
//     that the journal holds.
//  3. One write(2) of 40 bytes to the journal says both: the log's offset behind
//     them, and the stage's. A kill before it leaves the old pair: the next keeper
//     cuts the log at that offset and writes the lines again from the stage.
//
// A line without its end stays in the stage. What the journal has passed is given
// back to the kernel by punching holes.

var (
	faultStaged    = fault.New("keeper.log.staged")
	faultWritten   = fault.New("keeper.log.written")
	faultJournaled = fault.New("keeper.log.journaled")
	faultRotating  = fault.New("keeper.log.rotate-shifted")
	faultRotated   = fault.New("keeper.log.rotate-renamed")
)

const (
	maxLine   = 16 << 10 // longer lines are written in parts (CRI log format)
	chunk     = 256 << 10
	punchStep = 64 << 10
)

// timeFormat is RFC 3339 with nine digits always, so that lines align and sort.
const timeFormat = "2006-01-02T15:04:05.000000000Z07:00"

// position is what the journal holds.
type position struct {
	log   int64    // offset behind the last line
	inode uint64   // of the log's file
	stage [2]int64 // what has been logged of stdout and stderr
}

// criLog is the log of one container. Its methods are called with the container's
// output lock held.
type criLog struct {
	conf    keeper.LogConfig
	file    *os.File // nil: discarded
	journal *os.File
	pos     position
	stages  [2]*os.File
	punched [2]int64
	failing bool
	warn    func(msg string, args ...any)
}

// openLog opens, or on a restart of the keeper continues, the log whose stages and
// journal are in dir.
func openLog(conf keeper.LogConfig, dir string, warn func(string, ...any)) (*criLog, error) {
	l := &criLog{conf: conf, warn: warn}
	var err error
	if l.journal, err = os.OpenFile(filepath.Join(dir, "journal"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	for i, name := range []string{"stdout.stage", "stderr.stage"} {
		if l.stages[i], err = os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
			l.close()
			return nil, err
		}
	}
	var buf [32]byte
	if n, _ := l.journal.ReadAt(buf[:], 0); n == len(buf) {
		l.pos = position{
			log:   int64(binary.LittleEndian.Uint64(buf[0:])),
			inode: binary.LittleEndian.Uint64(buf[8:]),
			stage: [2]int64{int64(binary.LittleEndian.Uint64(buf[16:])), int64(binary.LittleEndian.Uint64(buf[24:]))},
		}
	}
	if err := l.open(); err != nil {
		// A log that cannot be written must not keep the container from running.
		l.fail(err)
	}
	return l, nil
}

// open opens the log's file and cuts off what the journal does not know.
func (l *criLog) open() error {
	if l.conf.Path == "" {
		return nil
	}
	if l.file != nil {
		l.file.Close()
		l.file = nil
	}
	if err := os.MkdirAll(filepath.Dir(l.conf.Path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(l.conf.Path, os.O_WRONLY|os.O_CREATE, 0o640)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return err
	}
	switch {
	case st.Ino != l.pos.inode: // new, or moved here by somebody: append
		l.pos.log, l.pos.inode = st.Size, st.Ino
	case st.Size < l.pos.log: // somebody truncated it
		l.pos.log = st.Size
	case st.Size > l.pos.log:
		if err := f.Truncate(l.pos.log); err != nil {
			f.Close()
			return err
		}
	}
	l.file = f
	return l.commit()
}

func (l *criLog) commit() error {
	var buf [32]byte
	binary.LittleEndian.PutUint64(buf[0:], uint64(l.pos.log))
	binary.LittleEndian.PutUint64(buf[8:], l.pos.inode)
	binary.LittleEndian.PutUint64(buf[16:], uint64(l.pos.stage[0]))
	binary.LittleEndian.PutUint64(buf[24:], uint64(l.pos.stage[1]))
	_, err := l.journal.WriteAt(buf[:], 0)
	return err
}

// staged returns what is in the stage and not yet logged.
func (l *criLog) staged(i int) (from, to int64, err error) {
	to, err = l.stages[i].Seek(0, 2)
	return l.pos.stage[i], to, err
}

// fill moves what is in the FIFO to the stage and returns how much that was; 0 means
// that the FIFO is empty.
func (l *criLog) fill(i int, fifo *os.File) (n int64, err error) {
	end, err := l.stages[i].Seek(0, 2)
	if err != nil {
		return 0, err
	}
	for {
		n, err = unix.Splice(int(fifo.Fd()), nil, int(l.stages[i].Fd()), &end, chunk, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		if err == unix.EINTR {
			continue
		}
		if err == unix.EAGAIN {
			return 0, nil
		}
		if n > 0 {
			faultStaged.Hit()
		}
		return n, err
	}
}

var streamNames = [2]string{"stdout", "stderr"}

// write logs the whole lines of the stage, and with flush also a last one that has
// no end.
func (l *criLog) write(i int, flush bool) {
	from, to, err := l.staged(i)
	if err != nil {
		l.fail(err)
		return
	}
	for from < to {
		buf := bufs.Get().(*[]byte)
		n, err := l.stages[i].ReadAt((*buf)[:min(int64(len(*buf)), to-from)], from)
		if err != nil && n == 0 {
			bufs.Put(buf)
			l.fail(err)
			return
		}
		out, used := format((*buf)[:n], streamNames[i], flush && from+int64(n) == to, time.Now())
		if used > 0 {
			l.append(i, out, int64(used))
		}
		bufs.Put(buf)
		if used == 0 {
			return
		}
		from += int64(used)
	}
}

// format turns bytes of a stream into lines of the CRI log format and tells how
// many bytes it used: whole lines, parts of lines longer than maxLine and, with
// flush, the rest.
func format(b []byte, stream string, flush bool, now time.Time) (out []byte, used int) {
	prefix := now.AppendFormat(make([]byte, 0, 64), timeFormat)
	prefix = append(prefix, ' ')
	prefix = append(prefix, stream...)
	out = make([]byte, 0, len(b)+len(b)/8+128)
	for used < len(b) {
		rest := b[used:]
		n, tag, skip := bytes.IndexByte(rest[:min(len(rest), maxLine+1)], '\n'), " F ", 1
		switch {
		case n >= 0:
		case len(rest) > maxLine:
			n, tag, skip = maxLine, " P ", 0
		case flush:
			n, skip = len(rest), 0
		default:
			return out, used
		}
		out = append(out, prefix...)
		out = append(out, tag...)
		out = append(out, rest[:n]...)
		out = append(out, '\n')
		used += n + skip
	}
	return out, used
}

// append writes formatted lines that took used bytes of the stage.
func (l *criLog) append(i int, out []byte, used int64) {
	if l.conf.Path != "" {
		err := error(nil)
		if l.file == nil {
			err = l.open()
		}
		if err == nil && l.conf.MaxBytes > 0 && l.pos.log > 0 && l.pos.log+int64(len(out)) > l.conf.MaxBytes {
			err = l.rotate()
		}
		if err == nil {
			_, err = l.file.WriteAt(out, l.pos.log)
		}
		if err == nil {
			l.pos.log += int64(len(out))
			if l.failing {
				l.failing = false
				l.warn("the log is written again", "path", l.conf.Path)
			}
		} else {
			l.fail(err) // these lines are lost; the container goes on
		}
	}
	faultWritten.Hit()
	l.pos.stage[i] += used
	if err := l.commit(); err != nil {
		l.fail(err)
	}
	faultJournaled.Hit()
	if done := l.pos.stage[i] &^ 4095; done-l.punched[i] >= punchStep {
		if unix.Fallocate(int(l.stages[i].Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, l.punched[i], done-l.punched[i]) == nil {
			l.punched[i] = done
		}
	}
}

// fail says once, until it works again, that the log is not written.
func (l *criLog) fail(err error) {
	if !l.failing {
		l.failing = true
		l.warn("the log cannot be written; output is dropped until it can", "path", l.conf.Path, "error", err)
	}
}

// rotate moves log to log.1, log.1 to log.2 and so on, dropping the oldest, and
// begins a new one. A kill in the middle leaves a gap in the numbers, nothing else.
func (l *criLog) rotate() error {
	path := l.conf.Path
	if l.conf.MaxFiles < 2 {
		if err := l.file.Truncate(0); err != nil {
			return err
		}
		l.pos.log = 0
		return l.commit()
	}
	for n := l.conf.MaxFiles - 2; n >= 1; n-- {
		if err := os.Rename(path+"."+strconv.Itoa(n), path+"."+strconv.Itoa(n+1)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("rotate: %w", err)
		}
	}
	faultRotating.Hit()
	if err := os.Rename(path, path+".1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("rotate: %w", err)
	}
	faultRotated.Hit()
	return l.open()
}

// reopen opens the path anew, after somebody has moved the file away.
func (l *criLog) reopen() error { return l.open() }

func (l *criLog) close() {
	for _, f := range []*os.File{l.file, l.journal, l.stages[0], l.stages[1]} {
		if f != nil {
			f.Close()
		}
	}
}
