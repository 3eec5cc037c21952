package server

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
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
//  3. One write(2) to the journal says both: the log's offset behind them, and the
//     stage's. A kill before it leaves the old pair: the next keeper cuts the log at
//     that offset and writes the lines again from the stage.
//
// A line without its end stays in the stage. What the journal has passed is given
// back to the kernel by punching holes.

var (
	faultStaged    = fault.New("keeper.log.staged")
	faultWritten   = fault.New("keeper.log.written")
	faultJournaled = fault.New("keeper.log.journaled")
	faultShifted   = fault.New("keeper.log.rotate-shifted")
	faultRotated   = fault.New("keeper.log.rotate-renamed")
	faultBegun     = fault.New("keeper.log.rotate-begun")
)

const (
	chunk = 256 << 10
	// punchStep is how much of a stage is kept until it is given back.
	punchStep = 64 << 10
	// punchIdle is the same for a stream that pauses.
	punchIdle = 8 << 10
)

// criLog is the log of one container. Its methods are called with the container's
// output lock held.
type criLog struct {
	conf    keeper.LogConfig
	dir     string   // of journal and stages
	file    *os.File // nil: not open
	pos     position
	journal *os.File
	stages  [2]*os.File // nil: nothing was ever written
	ends    [2]int64    // of the stages
	punched [2]int64
	dropped int64 // bytes of output, since the log failed
	failing bool
	quiet   bool      // this failure was not said
	said    time.Time // the last one that was
	warn    func(msg string, args ...any)
}

var stageNames = [2]string{"stdout.stage", "stderr.stage"}

// openLog continues, on a restart of the keeper, or prepares the log whose stages and
// journal are in dir. The log's file itself is on a disk, and nobody waits for it at a
// start: begin or the first output open it.
func openLog(conf keeper.LogConfig, dir string, warn func(string, ...any)) (*criLog, error) {
	l := &criLog{conf: conf, dir: dir, warn: warn}
	var err error
	if l.journal, err = os.OpenFile(filepath.Join(dir, "journal"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	l.pos.read(l.journal)
	for i := range l.stages {
		if err := l.openStage(i, 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			l.close()
			return nil, err
		}
		l.punched[i] = l.pos.stage[i] &^ 4095
	}
	return l, nil
}

// begin opens the log's file, so that it is there even if nothing is written to it. A log
// that cannot be written must not keep the container from running.
func (l *criLog) begin() {
	if l.file == nil {
		if err := l.open(); err != nil {
			l.fail(err, 0)
		}
	}
}

func (l *criLog) openStage(i, flags int) error {
	f, err := os.OpenFile(filepath.Join(l.dir, stageNames[i]), os.O_RDWR|flags, 0o600)
	if err != nil {
		return err
	}
	if l.ends[i], err = f.Seek(0, 2); err != nil {
		f.Close()
		return err
	}
	l.stages[i] = f
	return nil
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
	place, err := openPlace(&l.conf)
	if err != nil {
		return err
	}
	defer place.close()
	f, err := place.open(filepath.Base(l.conf.Path), os.O_CREATE)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err = unix.Fstat(int(f.Fd()), &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = fmt.Errorf("%s is not a file", l.conf.Path)
	}
	if err == nil {
		switch {
		case st.Ino != l.pos.inode:
			// New, or the file was moved away by somebody or by us: that one ends where
			// the journal says.
			l.cutMoved(place)
			l.pos.log, l.pos.inode = st.Size, st.Ino
		case st.Size < l.pos.log: // somebody truncated it
			l.pos.log = st.Size
		case st.Size > l.pos.log:
			err = f.Truncate(l.pos.log)
		}
	}
	if err == nil {
		err = l.commit()
	}
	if err != nil {
		f.Close()
		return err
	}
	l.file = f
	return nil
}

// cutMoved finds the file of the journal under another name beside the log, and cuts off
// what was written to it and not recorded: those lines come again.
func (l *criLog) cutMoved(place logPlace) {
	if l.pos.inode == 0 {
		return
	}
	names, err := place.names()
	if err != nil {
		return
	}
	for _, name := range names {
		if !strings.HasPrefix(name, filepath.Base(l.conf.Path)) {
			continue
		}
		f, err := place.open(name, 0)
		if err != nil {
			continue
		}
		var st unix.Stat_t
		found := unix.Fstat(int(f.Fd()), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Ino == l.pos.inode
		if found && st.Size > l.pos.log {
			if err := f.Truncate(l.pos.log); err != nil {
				l.warn("a log that was moved could not be cut", "path", name, "error", err)
			}
		}
		f.Close()
		if found {
			return
		}
	}
}

func (l *criLog) commit() error { return l.pos.write(l.journal) }

// fill moves what is in the FIFO to the stage and returns how much that was; 0 means
// that the FIFO is empty.
func (l *criLog) fill(i int, fifo *os.File) (n int64, err error) {
	if l.stages[i] == nil {
		if poll(fifo)&unix.POLLIN == 0 {
			return 0, nil
		}
		if err := l.openStage(i, os.O_CREATE); err != nil {
			return 0, err
		}
	}
	end := l.ends[i]
	for {
		n, err = unix.Splice(int(fifo.Fd()), nil, int(l.stages[i].Fd()), &end, chunk, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		if err == unix.EINTR {
			continue
		}
		if err == unix.EAGAIN {
			return 0, nil
		}
		if n > 0 {
			l.ends[i] += n
			faultStaged.Hit()
		}
		return n, err
	}
}

var streamNames = [2]string{"stdout", "stderr"}

// write logs the whole lines of the stage, and with flush also a last one that has
// no end.
func (l *criLog) write(i int, flush bool) {
	buf := buffers.Get().(*buffer)
	defer buffers.Put(buf)
	for from, to := l.pos.stage[i], l.ends[i]; from < to; from = l.pos.stage[i] {
		n, err := l.stages[i].ReadAt(buf.in[:min(int64(len(buf.in)), to-from)], from)
		if n == 0 {
			l.fail(err, 0)
			return
		}
		rest := cut(0)
		if flush && from+int64(n) == to {
			rest = cutEnd
		}
		used := buf.format(n, streamNames[i], rest, time.Now(), l.room())
		if used == 0 {
			return
		}
		l.append(i, buf.out, int64(used), int64(used))
	}
}

// room returns how much is to be written at once, 0 for any amount: what the file still
// takes, so that files are full when they are rotated.
func (l *criLog) room() int64 {
	if l.conf.MaxBytes <= 0 {
		return 0
	}
	if room := l.conf.MaxBytes - l.pos.log; room > 0 {
		return room
	}
	return l.conf.MaxBytes
}

// direct logs what is in the FIFO without the stage, where that cannot be written (a full
// tmpfs): the container goes on, and only a kill of the keeper at this very moment loses
// or doubles a line. It tells whether there was anything.
func (l *criLog) direct(i int, fifo *os.File) bool {
	if l.stages[i] != nil {
		l.write(i, true) // what is there comes first
	}
	if poll(fifo)&unix.POLLIN == 0 {
		return false
	}
	buf := buffers.Get().(*buffer)
	defer buffers.Put(buf)
	n, err := unix.Read(int(fifo.Fd()), buf.in[:])
	if n <= 0 {
		return err == unix.EINTR
	}
	for n > 0 {
		used := buf.format(n, streamNames[i], cutPart, time.Now(), l.room())
		l.append(i, buf.out, 0, int64(used))
		n = copy(buf.in[:], buf.in[used:n])
	}
	return true
}

// append writes formatted lines that took staged bytes of the stage and stand for raw
// bytes of output.
func (l *criLog) append(i int, out []byte, staged, raw int64) {
	if l.conf.Path != "" {
		if err := l.place(int64(len(out))); err != nil {
			l.fail(err, raw) // these lines are lost; the container goes on
		} else if _, err := l.file.WriteAt(out, l.pos.log); err != nil {
			kept := l.keepWhole(out)
			l.fail(err, raw*int64(len(out)-kept)/int64(len(out)))
		} else {
			l.pos.log += int64(len(out))
			l.works()
		}
	}
	faultWritten.Hit()
	l.pos.stage[i] += staged
	if err := l.commit(); err != nil {
		l.fail(err, 0)
	}
	faultJournaled.Hit()
}

// keepWhole is for a write that failed: the lines that were written whole stay, half a
// line does not. It returns how many bytes stay.
func (l *criLog) keepWhole(out []byte) int {
	size, err := l.file.Seek(0, 2) // WriteAt does not always tell how much it wrote
	if err != nil || size <= l.pos.log {
		return 0
	}
	kept := bytes.LastIndexByte(out[:min(int64(len(out)), size-l.pos.log)], '\n') + 1
	l.pos.log += int64(kept)
	l.file.Truncate(l.pos.log)
	return kept
}

// place makes sure that the log is open, is still the file that others see, and has
// room for n more bytes.
func (l *criLog) place(n int64) error {
	if l.file == nil {
		if err := l.open(); err != nil {
			return err
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(l.file.Fd()), &st); err != nil {
		return err
	}
	if st.Nlink == 0 { // somebody deleted it
		if err := l.open(); err != nil {
			return err
		}
	} else if st.Size < l.pos.log { // somebody truncated it
		l.pos.log = st.Size
	}
	if l.conf.MaxBytes > 0 && l.pos.log > 0 && l.pos.log+n > l.conf.MaxBytes {
		return l.rotate()
	}
	return nil
}

// release gives the kernel back what was logged and what those attached have read.
func (l *criLog) release(i int, read, step int64) {
	done := min(l.pos.stage[i], read) &^ 4095
	if l.stages[i] == nil || done-l.punched[i] < step {
		return
	}
	if unix.Fallocate(int(l.stages[i].Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, l.punched[i], done-l.punched[i]) == nil {
		l.punched[i] = done
	}
}

// fail says once, until it works again, that the log is not written. On a disk that is
// all but full it works and fails in turns: that is said every failPause.
func (l *criLog) fail(err error, raw int64) {
	l.dropped += raw
	if l.failing {
		return
	}
	l.failing = true
	now := time.Now()
	if l.quiet = now.Sub(l.said) < failPause; !l.quiet {
		l.said = now
		l.warn("the log cannot be written; output is dropped until it can", "path", l.conf.Path, "error", err)
	}
}

const failPause = 10 * time.Second

func (l *criLog) works() {
	if !l.failing {
		return
	}
	l.failing = false
	if !l.quiet {
		l.warn("the log is written again", "path", l.conf.Path, "droppedBytes", l.dropped)
		l.dropped = 0
	}
}

// rotate moves log to log.1, log.1 to log.2 and so on, dropping the oldest, and
// begins a new one. Numbers are shifted only up to the first one that is free, so that a
// kill in the middle drops nothing more when it is done again.
func (l *criLog) rotate() error {
	path := l.conf.Path
	if l.conf.MaxFiles < 2 {
		if err := l.file.Truncate(0); err != nil {
			return err
		}
		l.pos.log = 0
		return l.commit()
	}
	numbered := func(n int) string { return path + "." + strconv.Itoa(n) }
	free := 1
	for free < l.conf.MaxFiles-1 {
		if _, err := os.Lstat(numbered(free)); errors.Is(err, fs.ErrNotExist) {
			break
		}
		free++
	}
	for n := free - 1; n >= 1; n-- {
		if err := os.Rename(numbered(n), numbered(n+1)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("rotate: %w", err)
		}
	}
	faultShifted.Hit()
	if err := os.Rename(path, numbered(1)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("rotate: %w", err)
	}
	faultRotated.Hit()
	if err := l.open(); err != nil {
		return err
	}
	faultBegun.Hit()
	return nil
}

// reopen opens the path anew, after somebody has moved the file away.
func (l *criLog) reopen() error {
	err := l.open()
	if err == nil {
		l.works()
	}
	return err
}

func (l *criLog) close() {
	for _, f := range []*os.File{l.file, l.journal, l.stages[0], l.stages[1]} {
		if f != nil {
			f.Close()
		}
	}
}
