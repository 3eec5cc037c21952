package main

import (
	"crypto/subtle"
	_ "embed"
	"encoding/json"
	"errors"
	"html/template"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
)

//go:embed page.html
var pageHTML string

var page = template.Must(template.New("page").Parse(pageHTML))

// newApp serves the page at / and the notes at /notes:
//
//	GET    /notes       every note, as JSON
//	POST   /notes       a new one: a form's field "text", or the plain body
//	DELETE /notes/{id}  needs "Authorization: Bearer TOKEN" where a token is set
func newApp(s *store, title, token string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		host, _ := os.Hostname()
		notes := s.List()
		slices.Reverse(notes)
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		page.Execute(w, map[string]any{"Title": title, "Notes": notes, "Host": host})
	})
	mux.HandleFunc("GET /notes", func(w http.ResponseWriter, r *http.Request) {
		reply(w, http.StatusOK, s.List())
	})
	mux.HandleFunc("POST /notes", func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, 2*maxText)
		var text string
		form := strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded")
		if form {
			text = r.PostFormValue("text")
		} else {
			b, err := io.ReadAll(r.Body)
			if err != nil {
				http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
				return
			}
			text = string(b)
		}
		text = strings.TrimSpace(text)
		if text == "" || len(text) > maxText {
			http.Error(w, "a note has 1 to 65536 bytes; send it as the field text or as the body", http.StatusBadRequest)
			return
		}
		n, err := s.Add(text)
		if err != nil {
			slog.Error("write note", "error", err)
			http.Error(w, "the note was not stored: "+err.Error(), http.StatusInsufficientStorage)
			return
		}
		slog.Info("note added", "id", n.ID)
		if form && strings.Contains(r.Header.Get("Accept"), "text/html") {
			http.Redirect(w, r, "/", http.StatusSeeOther)
			return
		}
		reply(w, http.StatusCreated, n)
	})
	mux.HandleFunc("DELETE /notes/{id}", func(w http.ResponseWriter, r *http.Request) {
		given := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		if token != "" && subtle.ConstantTimeCompare([]byte(given), []byte(token)) != 1 {
			http.Error(w, "deleting needs the token of the secret", http.StatusUnauthorized)
			return
		}
		switch err := s.Delete(r.PathValue("id")); {
		case errors.Is(err, errNoSuchNote):
			http.Error(w, err.Error(), http.StatusNotFound)
		case err != nil:
			http.Error(w, err.Error(), http.StatusInternalServerError)
		default:
			w.WriteHeader(http.StatusNoContent)
		}
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok\n") })
	return mux
}

func reply(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(v)
}
