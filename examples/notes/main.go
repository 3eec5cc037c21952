// Command notes is the example application: a small web application that keeps
// notes on a volume, the init container that prepares the volume, and the sidecar
// that reads it. One binary, one image, three containers (../notes.yaml).
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const usage = `usage: notes COMMAND

  init    prepare the data directory ($NOTES_DATA) and write the first note
  serve   serve the application on $NOTES_LISTEN
  digest  count the notes every $NOTES_DIGEST_EVERY and serve the result on $NOTES_LISTEN
  check   exit 0 if what $NOTES_LISTEN serves is healthy
`

func main() {
	if len(os.Args) != 2 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	var err error
	switch os.Args[1] {
	case "init":
		err = prepare(dataFile())
	case "serve":
		err = serve(ctx)
	case "digest":
		err = digest(ctx)
	case "check":
		err = checkHealth(ctx)
	default:
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	if err != nil {
		slog.Error(os.Args[1]+" failed", "error", err)
		os.Exit(1)
	}
}

func setting(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

func dataFile() string { return filepath.Join(setting("NOTES_DATA", "/data"), "notes.jsonl") }

func listenAddr() string { return setting("NOTES_LISTEN", ":8080") }

// prepare makes the file and, on a new volume, the first note.
func prepare(path string) error {
	s, err := openStore(path)
	if err != nil {
		return err
	}
	defer s.Close()
	if len(s.List()) > 0 {
		slog.Info("volume already holds notes", "count", len(s.List()))
		return nil
	}
	n, err := s.Add(setting("NOTES_WELCOME", "Welcome. This note was written by the init container."))
	if err == nil {
		slog.Info("wrote the first note", "id", n.ID)
	}
	return err
}

func serve(ctx context.Context) error {
	s, err := openStore(dataFile())
	if err != nil {
		return err
	}
	defer s.Close()
	var token string
	if file := os.Getenv("NOTES_TOKEN_FILE"); file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("read the token: %w", err)
		}
		token = strings.TrimSpace(string(b))
	}
	slog.Info("serving", "address", listenAddr(), "notes", len(s.List()))
	return listen(ctx, newApp(s, setting("NOTES_TITLE", "Notes"), token))
}

// listen serves h until ctx ends, then lets requests under way finish.
func listen(ctx context.Context, h http.Handler) error {
	srv := &http.Server{Addr: listenAddr(), Handler: h, ReadHeaderTimeout: 5 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- srv.ListenAndServe() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	slog.Info("stopping")
	grace, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := srv.Shutdown(grace); err != nil {
		return err
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func checkHealth(ctx context.Context) error {
	_, port, ok := strings.Cut(listenAddr(), ":")
	if !ok {
		return fmt.Errorf("NOTES_LISTEN %q has no port", listenAddr())
	}
	req, err := http.NewRequestWithContext(ctx, "GET", "http://localhost:"+port+"/healthz", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("unhealthy: %s", resp.Status)
	}
	return nil
}
