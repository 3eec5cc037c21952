package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// summary is what the sidecar knows of the notes.
type summary struct {
	Notes int       `json:"notes"`
	Words int       `json:"words"`
	At    time.Time `json:"at"`
}

// digest reads the file that serve writes, from the same volume, again and again.
func digest(ctx context.Context) error {
	every, err := time.ParseDuration(setting("NOTES_DIGEST_EVERY", "2s"))
	if err != nil {
		return err
	}
	var last atomic.Pointer[summary]
	last.Store(&summary{})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /digest", func(w http.ResponseWriter, r *http.Request) { reply(w, http.StatusOK, last.Load()) })
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		if time.Since(last.Load().At) > 10*every {
			http.Error(w, "the digest is old", http.StatusServiceUnavailable)
		}
	})
	go func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			s, err := summarize(dataFile())
			if err != nil {
				slog.Error("read notes", "error", err)
			} else {
				if old := last.Swap(&s); old.Notes != s.Notes || old.At.IsZero() {
					slog.Info("digest", "notes", s.Notes, "words", s.Words)
				}
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	return listen(ctx, mux)
}

func summarize(path string) (summary, error) {
	s := summary{At: time.Now()}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	} else if err != nil {
		return s, err
	}
	defer f.Close()
	words := map[string]int{}
	r := bufio.NewReader(f)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			break // the end, or a line being written
		}
		var n note
		if err := json.Unmarshal(line, &n); err != nil {
			return s, err
		}
		if n.Deleted {
			delete(words, n.ID)
		} else {
			words[n.ID] = len(strings.Fields(n.Text))
		}
	}
	s.Notes = len(words)
	for _, w := range words {
		s.Words += w
	}
	return s, nil
}
