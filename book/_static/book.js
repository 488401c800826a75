// Search results quote the pages they find, which a page that was opened from disk may not read.
if (location.protocol === "file:") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}
