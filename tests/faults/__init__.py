"""What goes wrong on real machines: kills, full disks, damaged files, hostile ones."""
