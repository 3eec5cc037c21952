package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// note is one note. A line of the file is a note, or the deletion of one.
type note struct {
	ID      string    `json:"id"`
	Text    string    `json:"text,omitempty"`
	Time    time.Time `json:"time"`
	Deleted bool      `json:"deleted,omitempty"`
}

const maxText = 64 << 10

var errNoSuchNote = errors.New("no such note")

// store is an append-only file of JSON lines. A note is on the disk before Add
// returns; a half-written last line, left by a crash, is cut off when it is opened.
type store struct {
	mu    sync.Mutex
	f     *os.File
	notes []note // in the order they were written, guarded by mu
}

func openStore(path string) (*store, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	s := &store{f: f}
	whole, err := s.load()
	if err == nil {
		err = f.Truncate(whole)
	}
	if err == nil {
		_, err = f.Seek(whole, 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return s, nil
}

// load reads every whole line and returns where the last one ends.
func (s *store) load() (whole int64, err error) {
	r := bufio.NewReader(s.f)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return whole, nil // the end, or a line without its end
		}
		var n note
		if err := json.Unmarshal(line, &n); err != nil {
			return 0, fmt.Errorf("at byte %d: %w", whole, err)
		}
		s.apply(n)
		whole += int64(len(line))
	}
}

func (s *store) apply(n note) {
	if n.Deleted {
		s.notes = slices.DeleteFunc(s.notes, func(o note) bool { return o.ID == n.ID })
		return
	}
	s.notes = append(s.notes, n)
}

func (s *store) write(n note) error {
	var buf bytes.Buffer
	if err := json.NewEncoder(&buf).Encode(n); err != nil {
		return err
	}
	if _, err := s.f.Write(buf.Bytes()); err != nil {
		return err
	}
	if err := s.f.Sync(); err != nil {
		return err
	}
	s.apply(n)
	return nil
}

// Add writes a note to the disk.
func (s *store) Add(text string) (note, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := note{ID: rand.Text()[:10], Text: text, Time: time.Now().UTC().Truncate(time.Millisecond)}
	return n, s.write(n)
}

// Delete removes a note, or returns errNoSuchNote.
func (s *store) Delete(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.ContainsFunc(s.notes, func(n note) bool { return n.ID == id }) {
		return errNoSuchNote
	}
	return s.write(note{ID: id, Time: time.Now().UTC(), Deleted: true})
}

// List returns the notes, oldest first.
func (s *store) List() []note {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.notes)
}

// Close closes the file.
func (s *store) Close() error { return s.f.Close() }
