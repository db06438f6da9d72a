package settings

import "fmt"

// suggest is " (did you mean …?)" with the known name nearest to name, after prefix, or nothing if none is near.
func suggest(prefix, name string, known []string) string {
	best, near := "", len(name)/2
	for _, candidate := range known {
		if d := distance(name, candidate); d < near {
			best, near = candidate, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %q?)", prefix+best)
}

// distance is the Levenshtein distance of a and b in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			substitute := diagonal
			if a[i] != b[j] {
				substitute++
			}
			diagonal = row[j+1]
			row[j+1] = min(row[j]+1, row[j+1]+1, substitute)
		}
	}
	return row[len(b)]
}
