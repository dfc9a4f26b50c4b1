// Swagger UI, from this server's own files.
window.addEventListener("DOMContentLoaded", () => {
  SwaggerUIBundle({ url: "openapi.json", dom_id: "#docs", deepLinking: true, validatorUrl: null });
});
