package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestStoreSurvivesTornWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data", "notes.jsonl")
	s, err := openStore(path)
	if err != nil {
		t.Fatal(err)
	}
	a, _ := s.Add("first")
	b, _ := s.Add("second note")
	if err := s.Delete(a.ID); err != nil {
		t.Fatal(err)
	}
	s.Close()
	f, _ := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	f.WriteString(`{"id":"torn","te`)
	f.Close()

	if s, err = openStore(path); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Add("third"); err != nil {
		t.Fatal(err)
	}
	got := s.List()
	if len(got) != 2 || got[0].ID != b.ID || got[1].Text != "third" {
		t.Errorf("notes after a torn write: %+v", got)
	}
	sum, err := summarize(path)
	if err != nil || sum.Notes != 2 || sum.Words != 3 {
		t.Errorf("summary %+v, %v", sum, err)
	}
}

func TestApp(t *testing.T) {
	s, err := openStore(filepath.Join(t.TempDir(), "notes.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	srv := httptest.NewServer(newApp(s, "My notes", "token"))
	defer srv.Close()

	resp, err := http.PostForm(srv.URL+"/notes", url.Values{"text": {"<b>bold</b>"}})
	if err != nil || resp.StatusCode != http.StatusCreated {
		t.Fatalf("POST: %v, %v", resp, err)
	}
	var n note
	json.NewDecoder(resp.Body).Decode(&n)
	resp.Body.Close()
	if resp, _ := http.Post(srv.URL+"/notes", "text/plain", strings.NewReader("  ")); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("an empty note: %s", resp.Status)
	}
	resp, _ = http.Get(srv.URL + "/")
	body, _ := io.ReadAll(resp.Body)
	if !strings.Contains(string(body), "&lt;b&gt;bold") || !strings.Contains(string(body), "My notes") {
		t.Errorf("page:\n%s", body)
	}
	del := func(token string) int {
		req, _ := http.NewRequest("DELETE", srv.URL+"/notes/"+n.ID, nil)
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode
	}
	if a, b, c := del("wrong"), del("token"), del("token"); a != 401 || b != 204 || c != 404 {
		t.Errorf("DELETE: %d %d %d", a, b, c)
	}
}
