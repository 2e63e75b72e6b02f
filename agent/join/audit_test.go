package join

import (
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// A line that lost power half written is left out, and the next one is whole.
func TestTornAudit(t *testing.T) {
	dir := t.TempDir()
	for i := range 3 {
		a, err := openAudit(filepath.Join(dir, auditFile), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if err := a.write(Event{What: "enrol", Host: "h" + strconv.Itoa(i)}); err != nil {
			t.Fatal(err)
		}
		if _, err := a.file.WriteString(`{"what":"enr`); err != nil {
			t.Fatal(err)
		}
		if err := a.close(); err != nil {
			t.Fatal(err)
		}
	}
	all, err := Events(dir, 2)
	if err != nil || len(all) != 2 || all[0].Host != "h1" || all[1].Host != "h2" {
		t.Errorf("%+v, %v", all, err)
	}
	if none, err := Events(filepath.Join(dir, "none"), 2); err != nil || len(none) != 0 {
		t.Errorf("%+v, %v", none, err)
	}
	if err := os.Truncate(filepath.Join(dir, auditFile), 0); err != nil {
		t.Fatal(err)
	}
	if none, err := Events(dir, 2); err != nil || len(none) != 0 {
		t.Errorf("%+v, %v", none, err)
	}
}
