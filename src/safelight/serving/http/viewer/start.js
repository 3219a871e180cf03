SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#api",
  presets: [SwaggerUIBundle.presets.apis],
  deepLinking: true,
  // Otherwise a badge asks a public server whether the description is valid.
  validatorUrl: null,
});
